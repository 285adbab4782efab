"""The HTTP API. It knows the store and the queue, and never a model."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from services.api import problems
from services.api.body import BodyLimit
from services.api.dependencies import Resources
from services.api.middleware import RequestTelemetry
from services.api.proxies import ForwardedHeaders
from services.api.publisher import Publisher
from services.api.routes import health, recordings, sessions, turns, webhooks
from shared.audio.sandbox import AudioSandbox, Limits
from shared.messaging.broker import Broker
from shared.observability.tracing import start_tracing, stop_tracing
from shared.settings import Settings, get_settings
from shared.storage.blobs import open_blobs
from shared.store.database import Database
from shared.version import VERSION

_DESCRIPTION = """
Send what people say, as text or as recordings, and read back what they feel.

1. `POST /v1/sessions` opens a conversation.
2. `POST /v1/sessions/{id}/turns` adds a turn and answers at once with its `Location`.
3. `GET /v1/turns/{id}?wait=10` answers as soon as the turn is analysed. Or `POST /v1/webhooks`, to be told of each.

A POST with an `Idempotency-Key` may be sent again without a second effect. Every error is an RFC 9457 problem document
with a stable `code`.
"""

_PROBES = 2
"""Uploads that are probed at once: each takes milliseconds, and a process with its own memory."""
_PROBE_LIMITS = Limits(memory_bytes=256 * 2**20, cpu_s=5, timeout_s=30)

# FastAPI's own tells paths, queries and errors' messages, which may hold what people said.
_NO_TELEMETRY = {"tracing": False, "metrics": False, "logs": False}


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application, for any ASGI server.

    Raises:
        SetupError: it is to be traced, and what that needs is not installed.
    """
    settings = settings or get_settings()
    start_tracing(settings, "tenor-api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        blobs = open_blobs(settings)
        database, queue = Database(settings.database_url), Broker(settings.broker_url)
        resources = Resources(
            settings=settings,
            database=database,
            queue=queue,
            sending=Publisher(database, queue),
            blobs=blobs,
            audio=AudioSandbox(_PROBES, _PROBE_LIMITS),
        )
        app.state.resources = resources
        yield
        resources.close()
        stop_tracing()

    # Its pages of documentation come from here and not from a CDN, which a clinic's network may not reach.
    app = FastAPIOffline(
        title="Tenor",
        version=VERSION,
        description=_DESCRIPTION,
        lifespan=lifespan,
        responses=problems.RESPONSES,
        telemetry=_NO_TELEMETRY,
        webhooks=webhooks.events,
    )
    problems.install(app)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, in_flight_limit=settings.max_upload_bytes)
    app.add_middleware(problems.Unexpected)
    app.add_middleware(RequestTelemetry)
    app.add_middleware(ForwardedHeaders, root_path=settings.root_path, trusted=settings.proxy_networks)
    # They are tried in order, and most of what comes is turns.
    for router in (turns.router, sessions.router, recordings.router, webhooks.router, health.router):
        app.include_router(router)
    return app
