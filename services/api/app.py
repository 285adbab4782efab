"""The HTTP API. It uses the database and the broker, and never a model."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from services.api import problems
from services.api.body_limit import BodyLimit
from services.api.dependencies import Resources
from services.api.middleware import RequestTelemetry
from services.api.proxies import ForwardedHeaders
from services.api.routes import health, recordings, sessions, turns, webhooks
from shared.observability.tracing import start_tracing, stop_tracing
from shared.settings import Settings, get_settings
from shared.version import VERSION

_DESCRIPTION = """
Send the turns of a conversation, as text or as recordings, and read the emotion of each.

1. `POST /v1/sessions` opens a session, which holds one conversation.
2. `POST /v1/sessions/{id}/turns` adds a turn and answers at once with its `Location`.
3. `GET /v1/turns/{id}?wait=10` answers as soon as the turn is analysed. Or `POST /v1/webhooks` registers a URL that
   receives an event for every turn.

A POST with an `Idempotency-Key` may be sent again without a second effect. Every error is an RFC 9457 problem document
with a stable `code`.
"""

# FastAPI's own telemetry includes paths, queries and error messages, which may contain what a person said.
_NO_TELEMETRY = {"tracing": False, "metrics": False, "logs": False}


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application, for any ASGI server.

    Raises:
        SetupError: tracing is enabled, and the packages that it needs are not installed.
    """
    settings = settings or get_settings()
    start_tracing(settings, "tenor-api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        app.state.resources = resources = Resources.open(settings)
        yield
        resources.close()
        stop_tracing()

    # It serves the pages of the documentation itself: a clinic's network may not reach FastAPI's CDN.
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
    app.add_middleware(BodyLimit, limit=settings.api.max_body_bytes, in_flight_limit=settings.api.max_upload_bytes)
    app.add_middleware(problems.UnexpectedErrors)
    app.add_middleware(RequestTelemetry)
    app.add_middleware(ForwardedHeaders, root_path=settings.api.root_path, trusted=settings.api.proxy_networks)
    # Routes are matched in this order, and most requests are about turns.
    for router in (turns.router, sessions.router, recordings.router, webhooks.router, health.router):
        app.include_router(router)
    return app
