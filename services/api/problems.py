"""Renders every error as an RFC 9457 problem document with a stable `code`."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.validation import describe
from shared.errors import (
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RequestError,
    TenorError,
    Unauthenticated,
    UnsupportedEncoding,
)
from shared.observability.logging import current_context, type_and_traceback

_log = logging.getLogger(__name__)


class Problem(BaseModel):
    """An RFC 9457 problem document. `code` is for programs, `detail` for people."""

    type: str = Field(default="about:blank", examples=["about:blank"])
    title: str = Field(examples=["No such session"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["there is no session 5a0e0df1-4f0d-4dd6-a7a8-2b8bb2f5f7a4"])
    code: str = Field(examples=["session_not_found"])
    retryable: bool = Field(examples=[False], description="whether the same request may succeed later")
    correlation_id: str | None = Field(
        examples=["8b2f7b7c9c3d4b0f9a53c5d2f4f1e6aa"],
        description="the id of the request in Tenor's logs, also sent in the header X-Request-ID",
    )


PROBLEM: dict[str, Any] = {"content": {"application/problem+json": {"schema": Problem.model_json_schema()}}}
RESPONSES: dict[int | str, dict[str, Any]] = {"default": PROBLEM | {"description": "A problem document"}}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""The methods that metrics tell apart."""


class ProblemResponse(JSONResponse):
    """The HTTP response for an error."""

    media_type = "application/problem+json"

    def __init__(self, error: TenorError) -> None:
        problem = Problem(
            title=error.title,
            status=error.status,
            detail=error.detail,
            code=error.code,
            retryable=error.retryable,
            correlation_id=current_context().get("correlation_id"),
        )
        super().__init__(problem.model_dump(), status_code=error.status, headers=_headers(error))


def _headers(error: TenorError) -> dict[str, str]:
    match error:
        case Unauthenticated():
            return {"WWW-Authenticate": "Bearer"}
        case MethodNotAllowed(allowed=allowed):
            return {"Allow": ", ".join(allowed)}
        case UnsupportedEncoding():
            return {"Accept-Encoding": "gzip"}
        case TenorError(retryable=True):
            return {"Retry-After": "2"}
        case _:
            return {}


def install(app: FastAPI) -> None:
    """Register the handlers that render the errors of `app` as problem documents."""

    @app.exception_handler(TenorError)
    def tenor_error(_: Request, error: TenorError) -> ProblemResponse:
        return ProblemResponse(error)

    @app.exception_handler(RequestValidationError)
    def validation_error(request: Request, error: RequestValidationError) -> ProblemResponse:
        body = getattr(request.scope.get("route"), "body_field", None)
        return ProblemResponse(InvalidRequest(describe(error.errors(), body and body.field_info.annotation)))

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> ProblemResponse:
        return ProblemResponse(_from_http(request, error))


class UnexpectedErrors:
    """ASGI middleware that renders any other exception as a problem document, and logs its type and place.

    Starlette's own middleware raises the exception again after the response, and the server would log its message,
    which may quote what a person said.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except ClientDisconnect:
            _log.debug("the client disconnected, or was refused, before its body was read")
        except Exception as error:
            if scope["type"] != "http":
                raise
            _log.error("the request failed: %s", type_and_traceback(error))
            if not started:
                await ProblemResponse(TenorError("an unexpected error on the server"))(scope, receive, send)


def _from_http(request: Request, error: HTTPException) -> TenorError:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound("there is nothing at this path: /docs lists the paths")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return MethodNotAllowed(request.method, _allowed_methods(request))
    if isinstance(error.__cause__, TenorError):  # FastAPI turns every error of reading a body into one of HTTP
        return error.__cause__
    problem = RequestError(str(error.detail))
    status = HTTPStatus(error.status_code)
    problem.status, problem.title, problem.code = status.value, status.phrase, status.name.lower()
    return problem


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes that match the path of a request."""
    app: FastAPI = request.app
    return [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in app.routes)
    ]
