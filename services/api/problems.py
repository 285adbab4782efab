"""Renders every error as an RFC 9457 problem document with a stable `code`."""

import logging
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import InvalidRequest, NotFound, RequestError, TenorError
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
_MAX_NAME_LENGTH = 50


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
    if error.status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": "Bearer"}
    return {"Retry-After": "2"} if error.retryable else {}


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
    def http_error(_: Request, error: HTTPException) -> ProblemResponse:
        return ProblemResponse(_from_http(error))


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


def describe(errors: Sequence[Any], model: type[BaseModel] | None) -> str:
    """Describe where each value is not valid and why, without the value, which may be what a person said.

    Args:
        errors: the errors of pydantic.
        model: the model that the body was validated against.
    """
    lines: list[str] = []
    for error in errors:
        place = [part for part in error["loc"] if part not in ("body", "query", "path")]
        message = error["msg"]
        if error["type"] == "extra_forbidden":
            name = str(place.pop())
            message = unknown("field", name, _fields_at(model, place))
        where = ".".join(map(str, place))
        lines.append(f"{where}: {message}" if where else message)
    return "; ".join(lines)


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    """Describe an unknown field or parameter, and suggest the known one with the most similar name."""
    wrong = f"there is no {kind} {name[:_MAX_NAME_LENGTH]!r}"
    nearest = get_close_matches(name[:_MAX_NAME_LENGTH], known, n=1)
    if nearest:
        return f"{wrong}: did you mean {nearest[0]!r}?"
    return f"{wrong}: " + (f"the {kind}s are {', '.join(sorted(known))}" if known else "this request takes none")


def _fields_at(model: Any, place: Sequence[int | str]) -> list[str]:  # noqa: ANN401 - a type, or a part of one
    """Return the field names of the model that is nested in `model` at a place."""
    for part in place:
        if isinstance(part, str) and model is not None:
            field = model.model_fields.get(part)
            model = field and _model_in(field.annotation)
    return [] if model is None else list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - as above
    """Return the first pydantic model among a type and its arguments."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _from_http(error: HTTPException) -> TenorError:
    known = NotFound if error.status_code == HTTPStatus.NOT_FOUND else RequestError
    problem = known(str(error.detail))
    if known is RequestError:
        status = HTTPStatus(error.status_code)
        problem.status, problem.title, problem.code = status.value, status.phrase, status.name.lower()
    return problem
