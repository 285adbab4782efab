"""What a route is given: the process's resources, and the caller's key."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from services.api.auth import Keys
from services.api.ingest import Ingest, TurnRequest
from services.api.publisher import Publisher
from services.api.request_batcher import RequestBatcher
from services.api.turn_reader import TurnReader
from shared.audio.sandbox import AudioSandbox
from shared.domain.access import ApiKey, Permission
from shared.domain.idempotency import Answer
from shared.errors import Forbidden, Unauthenticated, Unavailable
from shared.messaging.broker import Broker
from shared.settings import Settings
from shared.storage.blobs import Blobs
from shared.store.database import Database

_MOST_DELETED = 100
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resources:
    """What one API process holds for its whole life."""

    settings: Settings
    database: Database
    queue: Broker
    sending: Publisher
    blobs: Blobs
    audio: AudioSandbox

    @cached_property
    def accepting(self) -> Ingest:
        return Ingest(self.database, self.sending, self.settings.lease)

    @cached_property
    def probe_slots(self) -> asyncio.Semaphore:
        """As many uploads as are probed at once; the others wait on the event loop."""
        return asyncio.Semaphore(self.audio.children)

    @cached_property
    def written(self) -> RequestBatcher[TurnRequest, Answer]:
        """Accepts turns without a recording."""
        return RequestBatcher(self.accepting.accept)

    @cached_property
    def reading(self) -> TurnReader:
        """Reads turns, and waits for them."""
        return TurnReader(self.database)

    @cached_property
    def keys(self) -> Keys:
        """Finds valid keys."""
        return Keys(self.database)

    def close(self) -> None:
        """Send what is not sent, and let go of it all."""
        self.audio.close()
        self.sending.close()
        self.database.close()

    def delete_sound(self, uris: Sequence[str]) -> None:
        """Delete doomed blobs before the answer goes out, unless they are many.

        The others, and what cannot be deleted now, are left to the workers.
        """
        now = uris[:_MOST_DELETED]
        try:
            for uri in now:
                self.blobs.delete(uri)
            with self.database.transaction() as transaction:
                transaction.pending_deletions.remove(now)
        except Unavailable as error:
            _log.warning("deletion is left to the workers: %s", error.detail)


# These are coroutines, though they wait for little or nothing: a function would take a thread each.
async def resources(request: Request) -> Resources:
    return cast("Resources", request.app.state.resources)


Res = Annotated[Resources, Depends(resources)]
_bearer = HTTPBearer(auto_error=False, description="an API key, made with `tenor keys create`")


async def api_key(res: Res, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> ApiKey:
    """Raises Unauthenticated unless the request carries a valid key."""
    if credentials is None:
        raise Unauthenticated("send an API key: Authorization: Bearer tnr_...")
    return await res.keys.find(credentials.credentials)


async def authenticate(request: Request) -> ApiKey:
    """Returns the request's key, outside of a route. Raises Unauthenticated."""
    return await api_key(await resources(request), await _bearer(request))


Key = Annotated[ApiKey, Depends(api_key)]


class Allowed:
    """A dependency that lets a key through if its role has the permission."""

    def __init__(self, permission: Permission) -> None:
        self._permission = permission

    async def __call__(self, key: Key) -> ApiKey:
        if self._permission not in key.role.permissions:
            raise Forbidden(f"a key with the role {key.role.value!r} may not {self._permission.value}")
        return key


ReadKey = Annotated[ApiKey, Depends(Allowed(Permission.read))]
WriteKey = Annotated[ApiKey, Depends(Allowed(Permission.write))]
DeleteKey = Annotated[ApiKey, Depends(Allowed(Permission.delete))]
ManageKey = Annotated[ApiKey, Depends(Allowed(Permission.manage))]
