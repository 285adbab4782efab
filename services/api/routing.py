"""The route class of `/v1`: unknown query parameters are refused, and errors are in the OpenAPI document."""

from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from services.api.idempotency import HEADER_PARAMETER
from services.api.problems import PROBLEM, unknown
from shared.errors import InvalidRequest


class ApiRoute(APIRoute):
    """A route that refuses undeclared query parameters, and adds its errors to the OpenAPI document.

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
        known = sorted(_query_parameters(self.dependant))

        async def handle_strictly(request: Request) -> Response:
            if request.scope["query_string"]:
                _check_query(request, known)
            return await handle(request)

        return handle_strictly


def _check_query(request: Request, known: list[str]) -> None:
    """Raise InvalidRequest if the query has an unknown parameter."""
    for name in request.query_params:
        if name not in known:
            raise InvalidRequest(unknown("query parameter", name, known))


def _query_parameters(dependant: Dependant) -> Iterator[str]:
    yield from (parameter.alias for parameter in dependant.query_params)
    for dependency in dependant.dependencies:
        yield from _query_parameters(dependency)
