"""The registry of workers: each writes a heartbeat, and is removed when it stops or has not been seen for long."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, delete, extract, func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.domain.job import Worker
from shared.store.tables import workers


class WorkerRegistry:
    """Reads and writes the workers that run. All times are the database's."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def record_heartbeat(
        self, worker_id: UUID, bundle_id: str | None, *, host: str | None = None, device: str | None = None
    ) -> None:
        """Register a worker, or record that it still runs.

        Args:
            bundle_id: None for a worker that takes no turns.
        """
        self._connection.execute(
            upsert(workers)
            .values(id=worker_id, bundle_id=bundle_id, host=host, device=device)
            .on_conflict_do_update(index_elements=["id"], set_={"seen_at": func.now()})
        )

    def remove(self, worker_id: UUID) -> None:
        """Remove a worker that stops."""
        self._connection.execute(delete(workers).where(workers.c.id == worker_id))

    def remove_unseen(self, unseen_for: timedelta) -> None:
        """Remove the workers whose last heartbeat is older than `unseen_for`: they died without removing themselves."""
        self._connection.execute(delete(workers).where(workers.c.seen_at < func.now() - unseen_for))

    def count(self, seen_within: timedelta) -> int:
        """Return how many workers that take turns wrote a heartbeat within this time."""
        lately = workers.c.seen_at >= func.now() - seen_within
        number = select(func.count()).where(lately, workers.c.bundle_id.is_not(None))
        return self._connection.execute(number).scalar_one()

    def all(self) -> list[Worker]:
        """Return every registered worker, the one with the newest heartbeat first."""
        unseen = extract("epoch", func.now() - workers.c.seen_at).label("unseen_s")
        rows = self._connection.execute(select(workers, unseen).order_by(workers.c.seen_at.desc(), workers.c.id))
        return [Worker.model_validate(row) for row in rows]
