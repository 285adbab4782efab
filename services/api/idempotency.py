"""Reads the `Idempotency-Key` of a POST, and answers a request that is sent again as it was answered first.

The header is that of the IETF draft (draft-ietf-httpapi-idempotency-key-header). Every successful answer to a request
with a key is kept, in the transaction that carries the request out. An error has no effect, so none is kept, and the
request may be sent again with the same key, corrected if need be.
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

_LONGEST_KEY = 255
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
"""A string of RFC 8941, as the draft has it."""
_BARE = re.compile(r"[!#-+\--~]+")
"""What most clients send: visible ASCII without quotes and commas."""
_CHUNK_BYTES = 2**20

HEADER_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "maxLength": _LONGEST_KEY},
    "description": "A name for this request that no other has, such as a UUID. The same request sent again with the "
    "same key gets the first answer again, with the header `Idempotent-Replayed: true`, and has no second effect. "
    "Answers are kept for a day (`TENOR_IDEMPOTENCY_HOURS`).",
    "example": "8e03978e-40d5-43dd-bc93-6894a57f9324",
}


def read_key(request: Request) -> str | None:
    """The request's `Idempotency-Key`; None where it has none.

    Raises:
        InvalidRequest: it is empty, too long or malformed, or there are several.
    """
    values = request.headers.getlist("idempotency-key")
    if not values:
        return None
    (value, *others) = values
    quoted = _QUOTED.fullmatch(value.strip())
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else value.strip()
    if others or not (quoted or _BARE.fullmatch(key)) or not 1 <= len(key) <= _LONGEST_KEY:
        raise InvalidRequest(
            f"Idempotency-Key: should be one key of 1 to {_LONGEST_KEY} visible ASCII characters, such as a UUID"
        )
    return key


def identify(
    request: Request, caller: ApiKey, body: BaseModel, audio: UploadFile | None = None
) -> IdempotentRequest | None:
    """Return the tenant, key and fingerprint of a request; None if it has no `Idempotency-Key`.

    The fingerprint is over its method, its path, the fields that were sent, and the bytes and the media type of its
    recording: not the order of fields or the spaces between them, nor the boundary of a form or the name of its file.

    Raises:
        InvalidRequest: the key is empty, too long or malformed, or there are several.
    """
    key = read_key(request)
    if key is None:
        return None
    asked = {
        "method": request.method,
        "path": request.scope["route"].path,
        "path_parameters": request.path_params,
        "fields": body.model_dump(mode="json", exclude_unset=True),
        "audio": None if audio is None else [_sha256(audio), audio.content_type],
    }
    fingerprint = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return IdempotentRequest(caller.tenant_id, key, fingerprint)


def respond(request: Request, answer: Answer) -> Response:
    """The HTTP response of an answer."""
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
