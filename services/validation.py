"""Parses and validates what callers send, with messages that say what is wrong and what would be right."""

import json
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from shared.errors import InvalidRequest, TextTooLong

Model = TypeVar("Model", bound=BaseModel)

_MAX_NAME_LENGTH = 50


def parse_json(text: bytes | str) -> object:
    """Return the value of a JSON text, which may begin with a byte order mark.

    Raises:
        InvalidRequest: it is not valid JSON in UTF-8, nests too deeply, or an object has a key twice.
    """
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        return json.loads(decoded, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the JSON is not valid UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise InvalidRequest("the JSON nests too many objects or lists in one another") from None
    except ValueError as error:  # JSONDecodeError, or a number of more than 4300 digits
        raise InvalidRequest(f"the JSON is not valid: {error}") from None


def check_text_length(text: str, max_chars: int) -> None:
    """Raise TextTooLong if the text of a turn is longer than the settings allow."""
    if len(text) > max_chars:
        raise TextTooLong(f"the text has {len(text)} characters; {max_chars} are allowed")


def validate(model: type[Model], value: object) -> Model:
    """Return a value as a model. Raises InvalidRequest, which names each field that is not valid."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidRequest(describe(error.errors(include_url=False), model)) from None


def describe(errors: Sequence[Any], model: type[BaseModel] | None) -> str:
    """Describe where each value is not valid and why, without the value, which may be what a person said.

    Args:
        errors: the errors of pydantic.
        model: the model that the value was validated against.
    """
    lines: list[str] = []
    for error in errors:
        place = [part for part in error["loc"] if part not in ("body", "query", "path")]
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            name = str(place.pop())
            message = unknown("field", name, _fields_at(model, place))
        elif error["type"] in ("model_type", "model_attributes_type"):
            message = "should be a JSON object"
        elif error["type"] in ("enum", "literal_error"):
            message += f", not {str(error['input'])[:_MAX_NAME_LENGTH]!r}"
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


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the object of these keys and values. JSON parsers differ in which value of a double key they take."""
    fields: dict[str, object] = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidRequest(f"the JSON has the key {name[:_MAX_NAME_LENGTH]!r} twice in one object")
        fields[name] = value
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"the JSON holds {name}, which JSON does not have: send a number, a text or null")


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
