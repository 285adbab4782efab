"""Which bodies of requests are read, and what is said about the others."""

import gzip
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

import pytest
from fastapi import Request
from fastapi.testclient import TestClient
from pydantic import ValidationError

from services.api.app import create_app
from services.api.dependencies import get_api_key
from services.api.gzip_body import Gunzip
from services.api.schemas.recording import RecordingIn
from services.api.schemas.turn import TurnIn
from services.validation import parse_json, validate
from shared.domain.access import ApiKey, KeyRole
from shared.domain.text import is_blank
from shared.errors import InvalidRequest
from shared.settings import ApiSettings, Settings

ID = UUID("5a0e0df1-4f0d-4dd6-a7a8-2b8bb2f5f7a4")
KEY = ApiKey(id=ID, tenant_id=ID, name="test", role=KeyRole.admin, created_at=datetime.now(UTC), revoked_at=None)
JSON = {"content-type": "application/json"}
TURNS = f"/v1/sessions/{ID}/turns"


@pytest.fixture(scope="module")
def api() -> Iterator[TestClient]:
    """A client of an API without servers, which accepts every key."""

    async def any_key(request: Request) -> ApiKey:
        return KEY

    settings = Settings(api=ApiSettings(max_body_bytes=4 * 2**20))
    app = create_app(settings)
    app.dependency_overrides[get_api_key] = any_key
    with pytest.MonkeyPatch.context() as patch, TestClient(app, raise_server_exceptions=False) as client:
        patch.setattr("services.api.body_limit.authenticate", any_key)
        yield client


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"text": "a", "text": "b"}', "the key 'text' twice"),
        (b'{"consent": {"basis": "a", "basis": "b"}}', "the key 'basis' twice"),
        (b'{"n": NaN}', "NaN, which JSON does not have"),
        (b"[" * 100_000, "too many objects or lists"),
        (b"1" * 5000, "the JSON is not valid"),
        (b'{"text": "a', "Unterminated string"),
        (b'{"text": "caf\xe9"}', "not valid UTF-8 at byte 13"),
        ('{"text": "a"}'.encode("utf-16"), "not valid UTF-8 at byte 0"),
        (b"", "the JSON is not valid"),
    ],
)
def test_json_that_is_not_valid_or_has_a_key_twice_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse_json(text)


def test_json_may_begin_with_a_byte_order_mark() -> None:
    assert parse_json('\ufeff{"text": "é"}'.encode()) == {"text": "é"} == parse_json('\ufeff{"text": "é"}')


BLANK = ["", " \n\t", "\x1b\x07", "\u200b\u200d\ufeff", "\u202e\u2066\u200f", "\u00ad", "\u3164", "\u2800", "\u0301"]


@pytest.mark.parametrize("text", BLANK)
def test_a_text_without_a_visible_character_is_no_text(text: str) -> None:
    assert is_blank(text)
    assert TurnIn(text=text).text is None


@pytest.mark.parametrize("text", ["a", "?", "\u202eabc", "🙂", "\U0001fae8", "नमस्ते", "\u0661", "\u200d.\u200d"])
def test_a_text_with_a_visible_character_is_kept_as_it_is(text: str) -> None:
    assert not is_blank(text)
    assert TurnIn(text=text).text == text


@pytest.mark.parametrize("name", ["", "  ", "\u200b", "Ada\nLovelace", "Ada\x1b[31m", "Ada\u2028", "Ada\r"])
def test_a_name_is_visible_and_on_one_line(name: str) -> None:
    with pytest.raises(InvalidRequest, match="speaker: "):
        validate(TurnIn, {"text": "x", "speaker": name})
    with pytest.raises(InvalidRequest, match=r"channels\.0\.speaker: "):
        validate(RecordingIn, {"channels": json.dumps([{"speaker": name}])})


@pytest.mark.parametrize("time", [1_700_000_000, 1.7e12, "1700000000", "1700000000.5", "-1", True, "20261128"])
def test_a_number_is_not_taken_for_a_time(time: object) -> None:
    for model, field in ((TurnIn, "occurred_at"), (RecordingIn, "started_at")):
        with pytest.raises(InvalidRequest, match=f"{field}: should be a time with a time zone"):
            validate(model, {field: time})


@pytest.mark.parametrize("time", ["2026-11-28T17:09:53Z", "2026-11-28 17:09:53.5+05:30", "2026-11-28T17:09:53-00:00"])
def test_a_time_with_its_zone_is_accepted(time: str) -> None:
    occurred_at = validate(TurnIn, {"text": "x", "occurred_at": time}).occurred_at
    assert occurred_at is not None
    assert occurred_at.year == 2026


def test_the_channels_of_a_form_are_strict_json_too() -> None:
    with pytest.raises(InvalidRequest, match="channels: the JSON has the key 'role' twice"):
        validate(RecordingIn, {"channels": '[{"role": "agent", "role": "customer"}]'})
    with pytest.raises(ValidationError, match="at least 1 item"):
        RecordingIn.model_validate({"channels": "[]"})


def test_an_error_names_the_value_that_is_not_among_the_allowed_ones() -> None:
    with pytest.raises(InvalidRequest, match=r"role: .*'clinician', not 'king'"):
        validate(TurnIn, {"text": "x", "role": "king"})


def gunzipped(compressed: bytes, size: int) -> bytes:
    gunzip, data = Gunzip(), b""
    for start in range(0, len(compressed), size):
        gunzip.feed(compressed[start : start + size])
        while gunzip.has_more:
            data += gunzip.read()
    gunzip.finish()
    return data


@pytest.mark.parametrize("size", [1, 7, 2**20])
@pytest.mark.parametrize("count", [0, 1, 2**18 - 1, 2**18, 2**19, 2**19 + 300])
def test_gzip_is_decompressed_in_pieces(count: int, size: int) -> None:
    data = bytes(count)
    assert gunzipped(gzip.compress(data), size) == data
    assert gunzipped(gzip.compress(data) + gzip.compress(b"more"), size) == data + b"more"


@pytest.mark.parametrize(
    "compressed",
    [gzip.compress(b"x" * 99)[:-1], b"plain", b"", gzip.compress(b"x") + b"y"],
    ids=["cut off", "plain", "empty", "more after it"],
)
def test_damaged_gzip_is_refused(compressed: bytes) -> None:
    with pytest.raises(InvalidRequest, match="gzip"):
        gunzipped(compressed, 2**20)


def answer(api: TestClient, content: bytes, url: str = TURNS, **headers: str) -> tuple[int, str, str]:
    response = api.post(url, content=content, headers=JSON | {k.replace("_", "-"): v for k, v in headers.items()})
    problem = response.json()
    return response.status_code, problem["code"], problem["detail"]


def test_the_limit_holds_for_what_a_gzip_body_expands_to(api: TestClient) -> None:
    bomb = gzip.compress(b'{"text": "' + b"x" * 100 * 2**20 + b'"}')
    assert len(bomb) < 2**17
    assert answer(api, bomb, content_encoding="gzip")[:2] == (413, "body_too_large")
    empty_blocks = gzip.compress(b"")[:10] + b"\0\0\0\xff\xff" * (2**20 // 2)
    assert answer(api, empty_blocks, content_encoding="gzip")[:2] == (413, "body_too_large")


def test_a_gzip_body_is_validated_as_any_other(api: TestClient) -> None:
    twice = gzip.compress(b'{"text": "a", "text": "b"}')
    for encoding in ("gzip", "x-gzip", "GZIP", "identity, gzip"):
        assert "twice" in answer(api, twice, content_encoding=encoding)[2]
    assert "cut off" in answer(api, twice[:-9], content_encoding="gzip")[2]
    assert "not gzip" in answer(api, b"{}", content_encoding="gzip")[2]


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "\x00"])
def test_another_encoding_is_refused_with_the_one_that_is_read(api: TestClient, encoding: str) -> None:
    response = api.post(TURNS, content=b"{}", headers=JSON | {"content-encoding": encoding})
    assert response.status_code == 415
    assert response.json()["code"] == "content_encoding_unsupported"
    assert response.headers["accept-encoding"] == "gzip"


@pytest.mark.parametrize("url", ["/v1/sessions", "/v1/webhooks", TURNS])
def test_every_json_body_is_parsed_strictly(api: TestClient, url: str) -> None:
    assert "twice" in answer(api, b'{"url": "a", "url": "b"}', url)[2]
    status, code, detail = answer(api, b"{}", url, content_type="text/plain")
    assert (status, code) == (415, "media_type_unsupported")
    assert "application/json" in detail


@pytest.mark.parametrize(
    ("method", "url", "allowed"),
    [
        ("PUT", "/v1/sessions", "POST"),
        ("GET", "/v1/sessions", "POST"),
        ("HEAD", "/v1/sessions", "POST"),
        ("PATCH", f"/v1/sessions/{ID}", "GET, HEAD, DELETE"),
        ("PUT", "/v1/webhooks", "GET, HEAD, POST"),
        ("DELETE", f"/v1/turns/{ID}", "GET, HEAD"),
        ("TRACE", "/healthz", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_refused_with_the_right_ones(api: TestClient, method: str, url: str, allowed: str) -> None:
    response = api.request(method, url)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    if method != "HEAD":
        assert response.json()["code"] == "method_not_allowed"
        assert allowed.replace(", ", " or ") in response.json()["detail"]


def test_head_is_answered_as_get_without_the_content(api: TestClient) -> None:
    got, head = api.get("/healthz"), api.head("/healthz")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"]
    assert api.head("/v1/nothing").status_code == 404
