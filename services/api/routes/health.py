"""Routes of the health checks: is the process alive, and can it accept turns?"""

from fastapi import APIRouter

from services.api.dependencies import ResourcesDep
from services.api.routing import Route
from services.api.schemas.health import Health, Readiness
from shared.errors import StorageFull, Unavailable
from shared.store.database import Database

router = APIRouter(tags=["health"], route_class=Route)


@router.get("/healthz", summary="Check whether the API process is alive")
async def check_health() -> Health:  # a coroutine, which answers even while all threads are busy
    return Health(status="ok")


@router.get(
    "/readyz",
    summary="Check whether turns can be accepted: 503 if the database or the broker is unreachable, or a disk is full",
)
def check_readiness(resources: ResourcesDep) -> Readiness:
    resources.broker.ping()
    _check_room(resources.database)
    with resources.database.transaction() as transaction:
        workers = transaction.workers.count(seen_within=resources.settings.jobs.lease)
    return Readiness(database="ok", broker="ok", workers=workers)


def _check_room(database: Database) -> None:
    """Raise Unavailable while the database's disk is full. It writes only after a request has found the disk full."""
    if database.found_full:
        try:
            database.check_room()
        except StorageFull as error:
            raise Unavailable(error.detail) from error
