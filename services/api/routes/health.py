"""Is the process alive, and can it work?"""

from fastapi import APIRouter

from services.api.dependencies import Res
from services.api.schemas import Health, Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the API process alive?")
def healthz() -> Health:
    return Health(status="ok")


@router.get("/readyz", summary="Can turns be accepted? 503 where the database or the queue is away")
def readyz(res: Res) -> Readiness:
    res.queue.ping()
    with res.database.transaction() as transaction:
        workers = transaction.jobs.workers(seen_within=res.settings.lease)
    return Readiness(database="ok", queue="ok", workers=workers)
