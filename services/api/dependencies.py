"""What FastAPI injects into the routes: the resources of the process, and the API key of the request."""

from dataclasses import dataclass
from typing import Annotated, Self, cast

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from services.api.auth import ApiKeyCache
from services.api.ingest import Ingest, IngestRequest
from services.api.publisher import Publisher
from services.api.request_batcher import RequestBatcher
from services.api.turn_reader import TurnReader
from shared.audio.sandbox import AudioSandbox, Limits
from shared.domain.access import ApiKey, Permission
from shared.domain.idempotency import Answer
from shared.errors import Forbidden, Unauthenticated
from shared.messaging.broker import Broker
from shared.settings import Settings
from shared.storage.blobs import Blobs, open_blobs
from shared.store.database import Database

_PARALLEL_PROBES = 2
"""Uploads that are probed at once: a probe takes milliseconds, and a process with memory of its own."""
_PROBE_LIMITS = Limits(memory_bytes=256 * 2**20, cpu_s=5, timeout_s=30)


@dataclass(frozen=True)
class Resources:
    """What one API process opens when it starts and closes when it ends.

    Attributes:
        turn_batcher: accepts text turns of concurrent requests in one transaction.
    """

    settings: Settings
    database: Database
    broker: Broker
    publisher: Publisher
    blobs: Blobs
    audio: AudioSandbox
    ingest: Ingest
    turn_batcher: RequestBatcher[IngestRequest, Answer]
    turn_reader: TurnReader
    api_keys: ApiKeyCache

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Open the resources that the settings name. Nothing is connected to yet."""
        blobs, database, broker = open_blobs(settings), Database(settings.database.url), Broker(settings.broker.url)
        publisher, audio = Publisher(database, broker), AudioSandbox(_PARALLEL_PROBES, _PROBE_LIMITS)
        ingest = Ingest(settings, database, blobs, audio, publisher)
        return cls(
            settings=settings,
            database=database,
            broker=broker,
            publisher=publisher,
            blobs=blobs,
            audio=audio,
            ingest=ingest,
            turn_batcher=RequestBatcher(ingest.accept),
            turn_reader=TurnReader(database),
            api_keys=ApiKeyCache(database),
        )

    def close(self) -> None:
        """Publish the messages that wait, and close everything."""
        self.audio.close()
        self.publisher.close()
        self.database.close()


# These dependencies are coroutines, because FastAPI runs a plain function in a thread, and they hardly ever wait.
async def get_resources(request: Request) -> Resources:
    """Return the resources of this process."""
    return cast("Resources", request.app.state.resources)


ResourcesDep = Annotated[Resources, Depends(get_resources)]
_bearer = HTTPBearer(auto_error=False, description="an API key, made with `tenor keys create`")


async def get_api_key(
    resources: ResourcesDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> ApiKey:
    """Return the API key of the request. Raises Unauthenticated if it has none, or no valid one."""
    if credentials is None:
        raise Unauthenticated("send an API key: Authorization: Bearer tnr_...")
    return await resources.api_keys.find(credentials.credentials)


async def authenticate(request: Request) -> ApiKey:
    """Return the API key of a request outside of a route. Raises Unauthenticated as `get_api_key` does."""
    return await get_api_key(await get_resources(request), await _bearer(request))


class PermissionCheck:
    """A dependency that returns the API key, or raises Forbidden if its role lacks the permission."""

    def __init__(self, permission: Permission) -> None:
        self._permission = permission

    async def __call__(self, key: Annotated[ApiKey, Depends(get_api_key)]) -> ApiKey:
        if self._permission not in key.role.permissions:
            raise Forbidden(f"a key with the role {key.role.value!r} may not {self._permission.value}")
        return key


ReadKey = Annotated[ApiKey, Depends(PermissionCheck(Permission.read))]
WriteKey = Annotated[ApiKey, Depends(PermissionCheck(Permission.write))]
DeleteKey = Annotated[ApiKey, Depends(PermissionCheck(Permission.delete))]
ManageKey = Annotated[ApiKey, Depends(PermissionCheck(Permission.manage))]
