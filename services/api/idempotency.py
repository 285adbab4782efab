"""Reads the `Idempotency-Key` of a POST, and repeats the first answer to a request that is sent again.

The header follows the IETF draft (draft-ietf-httpapi-idempotency-key-header). The answer to every successful request
with a key is stored in the transaction that processes the request. An error has no effect and is not stored, so a
corrected request may be sent with the same key.
"""

import hashlib
import json
import re

from fastapi import Request, Response
from pydantic import BaseModel
from starlette.datastructures import UploadFile

from shared.domain.access import ApiKey
from shared.domain.idempotency import Answer, IdempotentRequest
from shared.errors import InvalidRequest

_MAX_KEY_LENGTH = 255
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
"""A string as RFC 8941 defines it, which the draft requires."""
_BARE = re.compile(r"[!#-+\--~]+")
"""Visible ASCII without quotes and commas, as most clients send it."""
_CHUNK_BYTES = 2**20

HEADER_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "maxLength": _MAX_KEY_LENGTH},
    "description": "A unique name for this request, such as a UUID. If the same request is sent again with the same "
    "key, it has no second effect, and its response is the first one with the header `Idempotent-Replayed: true`. "
    "Responses are stored for a day (`TENOR_API_IDEMPOTENCY_HOURS`).",
    "example": "8e03978e-40d5-43dd-bc93-6894a57f9324",
}


def read_key(request: Request) -> str | None:
    """Return the `Idempotency-Key` of a request; None if it has none.

    Raises:
        InvalidRequest: the key is empty, too long or malformed, or there are several.
    """
    values = request.headers.getlist("idempotency-key")
    if not values:
        return None
    (value, *others) = values
    quoted = _QUOTED.fullmatch(value.strip())
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else value.strip()
    if others or not (quoted or _BARE.fullmatch(key)) or not 1 <= len(key) <= _MAX_KEY_LENGTH:
        raise InvalidRequest(
            f"Idempotency-Key: should be one key of 1 to {_MAX_KEY_LENGTH} visible ASCII characters, such as a UUID"
        )
    return key


def identify(
    request: Request, caller: ApiKey, body: BaseModel, audio: UploadFile | None = None
) -> IdempotentRequest | None:
    """Return the tenant, key and fingerprint of a request; None if it has no `Idempotency-Key`.

    The fingerprint covers the method, the path, the fields, and the content and media type of the audio file. It does
    not cover the order of the fields, the white space, the boundary of a form and the name of the file.

    Raises:
        InvalidRequest: the key is empty, too long or malformed, or there are several.
    """
    key = read_key(request)
    if key is None:
        return None
    content = {
        "method": request.method,
        "path": request.scope["route"].path,
        "path_parameters": request.path_params,
        "fields": body.model_dump(mode="json", exclude_unset=True),
        "audio": None if audio is None else [_sha256(audio), audio.content_type],
    }
    fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return IdempotentRequest(caller.tenant_id, key, fingerprint)


def respond(request: Request, answer: Answer) -> Response:
    """Return the HTTP response for an answer."""
    headers: dict[str, str] = {}
    if answer.location is not None:
        headers["Location"] = request.scope.get("root_path", "") + answer.location
    if answer.replayed:
        headers["Idempotent-Replayed"] = "true"
    return Response(answer.body, answer.status, headers, media_type="application/json")


def _sha256(audio: UploadFile) -> str:
    audio.file.seek(0)
    digest = hashlib.sha256()
    while chunk := audio.file.read(_CHUNK_BYTES):
        digest.update(chunk)
    audio.file.seek(0)
    return digest.hexdigest()
