"""Is the process alive, and can it work?"""

from fastapi import APIRouter

from services.api.dependencies import Res
from services.api.schemas import Health, Readiness
from shared.errors import StorageFull, Unavailable
from shared.store.database import Database

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the API process alive?")
async def healthz() -> Health:  # a coroutine, which answers also while all threads are busy
    return Health(status="ok")


@router.get("/readyz", summary="Can turns be accepted? 503 where the database or the queue is away, or the disk full")
def readyz(res: Res) -> Readiness:
    res.queue.ping()
    _check_room(res.database)
    with res.database.transaction() as transaction:
        workers = transaction.workers.count(seen_within=res.settings.lease)
    return Readiness(database="ok", queue="ok", workers=workers)


def _check_room(database: Database) -> None:
    """Raises Unavailable while the database's disk is full. It writes only after a request found the disk full."""
    if database.found_full:
        try:
            database.check_room()
        except StorageFull as error:
            raise Unavailable(error.detail) from error
