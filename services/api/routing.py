"""The route classes. All routes answer HEAD. Those of `/v1` refuse unknown fields and document their errors."""

from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from python_multipart.multipart import parse_options_header
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from services.api.idempotency import HEADER_PARAMETER
from services.api.problems import PROBLEM
from services.validation import parse_json, unknown
from shared.errors import InvalidRequest, UnsupportedMediaType


class Route(APIRoute):
    """A route that answers HEAD as it answers GET. The server leaves out the content."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(_head_as_get(scope))

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().handle(_head_as_get(scope), receive, send)


class JsonRequest(Request):
    """A request whose JSON has each key once, and may begin with a byte order mark."""

    async def json(self) -> object:
        """Return the value of the body. Raises InvalidRequest if it is not valid JSON or has a key twice."""
        return parse_json(await self.body())


class ApiRoute(Route):
    """A route that refuses undeclared query parameters and ambiguous JSON, and documents its errors in OpenAPI.

    For a POST the document also has the header `Idempotency-Key`, which the endpoint reads by `identify`.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:  # noqa: ANN401 - FastAPI's
        invalid = "A parameter or field is unknown or not valid"
        problems: dict[int | str, dict[str, Any]] = {422: PROBLEM | {"description": invalid}}
        if "POST" in options["methods"]:
            extra: dict[str, Any] = options["openapi_extra"] or {}
            options["openapi_extra"] = extra | {"parameters": [HEADER_PARAMETER]}
            problems[409] = PROBLEM | {
                "description": "The session is closed, or a request with this Idempotency-Key is being carried out"
            }
            reused = "the Idempotency-Key belongs to another request"
            problems[422] = PROBLEM | {"description": f"{invalid}, or {reused}"}
        options["responses"] = problems | (options["responses"] or {})
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        known, takes_json = sorted(_query_parameters(self.dependant)), self.body_field is not None

        async def handle_strictly(request: Request) -> Response:
            if request.scope["query_string"]:
                _check_query(request, known)
            request = JsonRequest(request.scope, request.receive)
            if takes_json and await request.body():
                _check_is_json(request)
            return await handle(request)

        return handle_strictly


def _check_is_json(request: Request) -> None:
    """Raise UnsupportedMediaType if a request does not declare that its body is JSON."""
    media_type, _ = parse_options_header(request.headers.get("content-type", ""))
    if media_type != b"application/json":
        declared = f"not as {media_type[:50].decode('latin-1')!r}" if media_type else "and name this in Content-Type"
        raise UnsupportedMediaType(f"send the body as application/json, {declared}")


def _head_as_get(scope: Scope) -> Scope:
    return {**scope, "method": "GET"} if scope["type"] == "http" and scope["method"] == "HEAD" else scope


def _check_query(request: Request, known: list[str]) -> None:
    """Raise InvalidRequest if the query has an unknown parameter."""
    for name in request.query_params:
        if name not in known:
            raise InvalidRequest(unknown("query parameter", name, known))


def _query_parameters(dependant: Dependant) -> Iterator[str]:
    yield from (parameter.alias for parameter in dependant.query_params)
    for dependency in dependant.dependencies:
        yield from _query_parameters(dependency)
