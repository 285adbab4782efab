"""The API as its callers see it: what it accepts, how it answers, who may see what."""

import gzip
import json
import logging
import re
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from pathlib import Path
from typing import IO, Any
from uuid import UUID, uuid4

import numpy as np
import psycopg
import pytest
import redis
from fastapi.testclient import TestClient
from httpx2 import Response

from services.api.app import create_app
from services.api.auth import CACHE_S
from shared.audio.decoder import SAMPLE_RATE
from shared.domain.access import KeyRole
from shared.domain.job import Message
from shared.settings import Settings
from shared.storage.blobs import BlobFolder
from shared.store.database import Database
from tests.audio_clips import encoded, riff, tone, wav
from tests.integration.conftest import AllSent, MakeKey


def problem(response: Response) -> tuple[int, str]:
    """Status and code of a problem document."""
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code
    assert {"type", "title", "detail", "code"} <= body.keys()
    return response.status_code, body["code"]


def send_audio(
    api: TestClient, session_id: str, content: bytes, media_type: str = "audio/wav", **fields: str
) -> Response:
    return api.post(f"/v1/sessions/{session_id}/turns", files={"audio": ("turn.wav", content, media_type)}, data=fields)


def blobs(settings: Settings) -> list[Path]:
    return [path for path in settings.blob_dir.rglob("*") if path.is_file()]


def test_a_session_is_created_and_read_back(api: TestClient) -> None:
    created = api.post(
        "/v1/sessions",
        json={
            "external_ref": "call-1",
            "subject_ref": "p-17",
            "language_hint": "UR_arab-pk",
            "consent": {"retain_audio": True},
        },
    )
    assert created.status_code == 201
    session = api.get(created.headers["Location"]).json()
    assert session == created.json()
    assert session["language_hint"] == "ur-Arab-PK"
    assert session["consent"]["retain_audio"] is True


def test_a_subject_is_the_same_person_in_every_session_of_a_tenant(api: TestClient) -> None:
    first, again, other = (
        api.post("/v1/sessions", json={"subject_ref": ref}).json()["subject_id"] for ref in ("p-17", "p-17", "p-18")
    )
    assert first == again != other


def test_a_text_turn_is_accepted_with_its_location(api: TestClient, session_id: str) -> None:
    response = api.post(f"/v1/sessions/{session_id}/turns", json={"text": "I waited an hour!", "role": "customer"})
    assert response.status_code == 202
    turn = api.get(response.headers["Location"]).json()
    assert turn["status"] == "queued"
    assert turn["text"] == "I waited an hour!"
    assert turn["prediction"] is None
    assert turn["index"] == 0


def test_a_recording_is_accepted_with_its_fields_and_kept_until_it_is_analysed(
    api: TestClient, session_id: str, settings: Settings
) -> None:
    content = wav()
    response = send_audio(api, session_id, content, role="patient", speaker="Ana", text="buenos días")
    assert response.status_code == 202
    turn = response.json()
    assert (turn["role"], turn["speaker"], turn["text"]) == ("patient", "Ana", "buenos días")
    assert [path.read_bytes() for path in blobs(settings)] == [content]


def test_the_message_of_an_accepted_turn_carries_ids_only(
    api: TestClient, session_id: str, broker: redis.Redis, all_sent: AllSent
) -> None:
    api.post(f"/v1/sessions/{session_id}/turns", json={"text": "a secret"})
    all_sent()
    raw = broker.lrange("interactive", 0, -1)[0]  # pyright: ignore[reportIndexIssue]
    message = json.loads(raw)
    assert message["headers"]["task"] == "analyze_turn"
    assert "secret" not in str(raw)
    assert "secret" not in message["headers"]["argsrepr"]


def test_a_waiting_request_is_answered_when_its_own_turn_ends(
    api: TestClient, session_id: str, settings: Settings, database: Database
) -> None:
    def post(session: str) -> str:
        return api.post(f"/v1/sessions/{session}/turns", json={"text": "I waited an hour!"}).headers["Location"]

    deleted = api.post("/v1/sessions", json={}).json()["id"]
    ends, stays, goes = post(session_id), post(session_id), post(deleted)
    with ThreadPoolExecutor(3) as threads:
        told, untold, gone = (
            threads.submit(api.get, location, params={"wait": seconds})
            for location, seconds in ((ends, 30), (stays, 1), (goes, 30))
        )
        assert not wait({told, gone}, timeout=0.3).done
        with psycopg.connect(settings.database.url.get_secret_value()) as connection:
            connection.execute("UPDATE jobs SET status = 'failed' WHERE turn_id = %s", [ends.rpartition("/")[2]])
        api.delete(f"/v1/sessions/{deleted}")
        assert told.result(10).json()["status"] == "failed"
        assert problem(gone.result(10)) == (404, "turn_not_found")
        assert untold.result(10).json()["status"] == "queued"
    with database.transaction() as transaction:
        trail = [event.action for event in transaction.accounts.audit_trail(UUID(session_id))]
    assert trail == ["turn.read"] * 2


def test_history_is_ordered_and_paged(api: TestClient, session_id: str) -> None:
    for number in range(5):
        api.post(f"/v1/sessions/{session_id}/turns", json={"text": f"turn {number}"})
    texts, cursor = [], None
    for _ in range(3):
        page = api.get(
            f"/v1/sessions/{session_id}/history", params={"limit": 2} | ({"cursor": cursor} if cursor else {})
        )
        texts += [turn["text"] for turn in page.json()["turns"]]
        cursor = page.json()["next_cursor"]
    assert texts == [f"turn {number}" for number in range(5)]
    assert cursor is None


def test_reading_a_history_is_audited(api: TestClient, session_id: str, database: Database) -> None:
    api.get(f"/v1/sessions/{session_id}/history")
    with database.transaction() as transaction:
        trail = transaction.accounts.audit_trail(UUID(session_id))
    assert [(event.tenant, event.action) for event in trail] == [("acme", "history.read")]


def test_deleting_a_session_deletes_rows_and_audio(api: TestClient, session_id: str, settings: Settings) -> None:
    location = send_audio(api, session_id, wav()).headers["Location"]
    assert api.delete(f"/v1/sessions/{session_id}").status_code == 204
    assert blobs(settings) == []
    assert problem(api.get(f"/v1/sessions/{session_id}")) == (404, "session_not_found")
    assert problem(api.get(location)) == (404, "turn_not_found")
    assert problem(api.get(f"/v1/sessions/{session_id}/history")) == (404, "session_not_found")


def test_no_key_sees_another_tenants_rows(api: TestClient, session_id: str, make_key: MakeKey) -> None:
    location = api.post(f"/v1/sessions/{session_id}/turns", json={"text": "mine"}).headers["Location"]
    stranger = {"Authorization": f"Bearer {make_key('globex', KeyRole.admin)}"}
    session = f"/v1/sessions/{session_id}"
    assert problem(api.get(session, headers=stranger)) == (404, "session_not_found")
    assert problem(api.get(f"{session}/history", headers=stranger)) == (404, "session_not_found")
    assert problem(api.get(location, headers=stranger)) == (404, "turn_not_found")
    assert problem(api.post(f"{session}/turns", json={"text": "x"}, headers=stranger)) == (404, "session_not_found")
    assert problem(api.delete(session, headers=stranger)) == (404, "session_not_found")
    assert api.get(session).status_code == 200


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer tnr_wrong"}, {"Authorization": "Basic abc"}])
def test_a_request_without_a_valid_key_is_refused(api: TestClient, header: dict[str, str]) -> None:
    del api.headers["Authorization"]
    assert problem(api.post("/v1/sessions", json={}, headers=header)) == (401, "unauthenticated")


def test_a_revoked_key_is_refused_within_seconds(api: TestClient, database: Database) -> None:
    assert api.post("/v1/sessions", json={}).status_code == 201
    with database.transaction() as transaction:
        for _, key in transaction.accounts.all_keys():
            transaction.accounts.revoke_key(key.id)
    time.sleep(CACHE_S)
    assert problem(api.post("/v1/sessions", json={})) == (401, "unauthenticated")


def test_a_key_works_as_soon_as_it_is_made(api: TestClient, make_key: MakeKey) -> None:
    key = make_key("acme", KeyRole.writer)
    assert api.post("/v1/sessions", json={}, headers={"Authorization": f"Bearer {key}"}).status_code == 201


def test_each_role_allows_only_its_own_requests(api: TestClient, session_id: str, make_key: MakeKey) -> None:
    reader = {"Authorization": f"Bearer {make_key('acme', KeyRole.reader)}"}
    writer = {"Authorization": f"Bearer {make_key('acme', KeyRole.writer)}"}
    session = f"/v1/sessions/{session_id}"
    assert api.get(session, headers=reader).status_code == 200
    assert problem(api.post(f"{session}/turns", json={"text": "x"}, headers=reader)) == (403, "forbidden")
    assert api.post(f"{session}/turns", json={"text": "x"}, headers=writer).status_code == 202
    assert problem(api.delete(session, headers=writer)) == (403, "forbidden")


def test_keys_are_stored_as_hashes_only(database: Database, make_key: MakeKey, settings: Settings) -> None:
    key = make_key("acme", KeyRole.admin)
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        rows = str(connection.execute("SELECT api_keys::text FROM api_keys").fetchall())
    assert key not in rows
    assert key.removeprefix("tnr_") not in rows


@pytest.mark.parametrize(
    ("content", "media_type", "expected"),
    [
        (b"", "audio/wav", (422, "audio_empty")),
        (b"these are only words, not sound" * 99, "audio/wav", (422, "audio_undecodable")),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "audio/wav", (422, "audio_undecodable")),
        (
            b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n",
            "audio/wav",
            (422, "audio_undecodable"),
        ),
        (wav(), "text/plain", (415, "media_type_unsupported")),
        (wav(), "image/png", (415, "media_type_unsupported")),
        (wav(), "audio/" + "x" * 100, (415, "media_type_unsupported")),
        (wav(), "audio/é", (415, "media_type_unsupported")),
        (wav(), "audio/", (415, "media_type_unsupported")),
        (riff(bytes(1000), kind=0x1234), "audio/wav", (422, "audio_undecodable")),
        (wav(tone(60, rate=8000), rate=8000), "audio/wav", (413, "audio_too_long")),
    ],
)
def test_an_upload_that_is_not_usable_audio_is_refused(
    api: TestClient, session_id: str, settings: Settings, content: bytes, media_type: str, expected: tuple[int, str]
) -> None:
    settings = settings.updated(audio={"max_turn_s": 30.0})
    with TestClient(create_app(settings), headers=dict(api.headers), raise_server_exceptions=False) as strict:
        assert problem(send_audio(strict, session_id, content, media_type)) == expected
    assert api.get(f"/v1/sessions/{session_id}/history").json()["turns"] == []
    assert blobs(settings) == []


def test_the_content_of_an_upload_decides_whether_it_is_a_recording(api: TestClient, session_id: str) -> None:
    recording = encoded("m4a", np.stack([tone(0.5)]), SAMPLE_RATE)
    for media_type in ("application/mp4", "audio/x-wav", "application/octet-stream", "binary/octet-stream"):
        assert send_audio(api, session_id, recording, media_type).status_code == 202
        assert problem(send_audio(api, session_id, b"%PDF-1.7" * 99, media_type)) == (422, "audio_undecodable")


@pytest.mark.parametrize("text", ["", "  ", "\u200b\u202e"])
def test_a_blank_text_beside_audio_is_no_text(api: TestClient, session_id: str, text: str) -> None:
    assert send_audio(api, session_id, wav(), text=text).json()["text"] is None


def test_gzip_bodies_and_byte_order_marks_are_read(api: TestClient, session_id: str) -> None:
    url = f"/v1/sessions/{session_id}/turns"
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    for body in (b'{"text": "one"}', '\ufeff{"text": "one"}'.encode()):
        assert api.post(url, content=gzip.compress(body), headers=headers).json()["text"] == "one"
    form = api.build_request("POST", url, files={"audio": ("a.wav", wav())}, data={"text": "two"})
    headers["content-type"] = form.headers["content-type"]
    assert api.post(url, content=gzip.compress(form.read()), headers=headers).json()["text"] == "two"


def test_every_read_may_be_a_head_request(api: TestClient, session_id: str) -> None:
    turn = api.post(f"/v1/sessions/{session_id}/turns", json={"text": "x"}).headers["Location"]
    for path in (turn, f"/v1/sessions/{session_id}", f"/v1/sessions/{session_id}/history", "/v1/webhooks", "/readyz"):
        got, head = api.get(path), api.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == got.headers["content-length"]
    assert api.head(f"/v1/turns/{uuid4()}").status_code == 404
    del api.headers["Authorization"]
    assert api.head(turn).status_code == 401


@pytest.mark.parametrize(
    ("body", "media_type", "expected"),
    [
        (b'{"text": "', "application/json", (422, "request_invalid")),
        (b'{"text": "caf\xe9"}', "application/json", (422, "request_invalid")),
        (b'{"text": "\\ud800"}', "application/json", (422, "request_invalid")),
        (b'{"text": "a\\u0000b"}', "application/json", (422, "request_invalid")),
        (b'{"text": "  "}', "application/json", (422, "request_invalid")),
        (b"{}", "application/json", (422, "request_invalid")),
        (b'{"text": "x", "role": "king"}', "application/json", (422, "request_invalid")),
        (b'{"text": "x", "mood": "good"}', "application/json", (422, "request_invalid")),
        (b'{"text": "x", "occurred_at": "2026-01-01T00:00:00"}', "application/json", (422, "request_invalid")),
        (b'{"text": "x", "occurred_at": "0001-01-01T00:00:00+14:00"}', "application/json", (422, "request_invalid")),
        (b'{"text": "x", "occurred_at": "9999-12-31T23:59:59-14:00"}', "application/json", (422, "request_invalid")),
        (b'{"text": "' + b"x" * 3 * 2**20 + b'"}', "application/json", (413, "body_too_large")),
        (json.dumps({"text": "x" * 2**20}).encode(), "application/json", (413, "text_too_long")),
        (b"x", "text/plain", (415, "media_type_unsupported")),
        (b'{"text": "x", "occurred_at": 1700000000}', "application/json", (422, "request_invalid")),
        (b'{"text": "x", "text": "y"}', "application/json", (422, "request_invalid")),
        (b"x", "multipart/form-data", (422, "request_invalid")),
        (b"x", "multipart/form-data; boundary=b", (422, "request_invalid")),
        (wav(), "audio/wav", (415, "media_type_unsupported")),
    ],
)
def test_a_body_that_is_not_a_valid_turn_is_refused(
    api: TestClient, session_id: str, body: bytes, media_type: str, expected: tuple[int, str]
) -> None:
    url = f"/v1/sessions/{session_id}/turns"
    assert problem(api.post(url, content=body, headers={"content-type": media_type})) == expected
    assert api.post(url, json={"text": "the next one is fine"}).status_code == 202


@pytest.mark.parametrize(
    "body",
    [
        b'{"consent": {"basis": "a\\u0000b"}}',
        b'{"consent": {"basis": "\\ud800"}}',
        b'{"consent": {"basis": "' + b"x" * 300 + b'"}}',
        b'{"language_hint": "klingon"}',
    ],
)
def test_an_invalid_session_is_refused(api: TestClient, body: bytes) -> None:
    response = api.post("/v1/sessions", content=body, headers={"content-type": "application/json"})
    assert problem(response) == (422, "request_invalid")


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/sessions/{}/turns"])
def test_a_long_body_of_unknown_length_is_refused(api: TestClient, session_id: str, path: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"text": "'
        for _ in range(40):
            yield b"x" * 2**16

    headers = {"content-type": "application/json"}
    assert problem(api.post(path.format(session_id), content=chunks(), headers=headers)) == (413, "body_too_large")


def test_an_unexpected_error_is_a_problem_document_without_the_text_of_the_turn(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = "Mr Smith"

    def broken(*_: object) -> None:
        raise ValueError(name)

    monkeypatch.setattr("services.api.routes.sessions.SessionOut.of", broken)
    with caplog.at_level(logging.INFO):
        assert problem(api.post("/v1/sessions", json={"external_ref": "x"})) == (500, "internal_error")
    assert "ValueError" in caplog.text
    assert name not in caplog.text


def test_audio_of_a_refused_turn_is_deleted_at_once(
    api: TestClient, session_id: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = BlobFolder.put

    def put_and_delete_the_session(folder: BlobFolder, uri: str, source: IO[bytes]) -> str:
        digest = put(folder, uri, source)
        assert api.delete(f"/v1/sessions/{session_id}").status_code == 204
        return digest

    monkeypatch.setattr(BlobFolder, "put", put_and_delete_the_session)
    assert problem(send_audio(api, session_id, wav())) == (404, "session_not_found")
    assert blobs(settings) == []


def test_form_text_that_is_not_utf8_is_refused(api: TestClient, session_id: str) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\ncaf\xe9\r\n'
    form += b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a.wav"\r\n\r\n' + wav() + b"\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = api.post(f"/v1/sessions/{session_id}/turns", content=form, headers=headers)
    assert problem(response) == (422, "request_invalid")
    assert "UTF-8" in response.json()["detail"]


@pytest.mark.parametrize("media_type", [b"audio/\0wav", b"audio/wav;\0", b"audio/wav;\xe9"])
def test_a_malformed_media_type_in_a_form_is_refused(api: TestClient, session_id: str, media_type: bytes) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a.wav"\r\nContent-Type: '
    form = head + media_type + b"\r\n\r\n" + wav() + b"\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = api.post(f"/v1/sessions/{session_id}/turns", content=form, headers=headers)
    assert problem(response) == (415, "media_type_unsupported")


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (b"\r\n--b--\r\n", 202),
        (b"\r\n--b--", 202),
        (b"", 422),
        (b"\r\n--b", 422),
        (b'\r\n--b\r\nContent-Disposition: form-data; name="role"\r\n\r\nagent\r\n--b--', 422),
    ],
    ids=["complete", "without a line's end", "cut off", "cut off in its boundary", "a field twice"],
)
def test_a_form_must_be_complete_and_hold_each_field_once(
    api: TestClient, session_id: str, end: bytes, status: int
) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a.wav"\r\n\r\n' + wav()
    form += b'\r\n--b\r\nContent-Disposition: form-data; name="role"\r\n\r\ncustomer' + end
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = api.post(f"/v1/sessions/{session_id}/turns", content=form, headers=headers)
    assert response.status_code == status
    assert status == 202 or problem(response) == (422, "request_invalid")


def test_an_error_does_not_repeat_the_text_of_the_turn(api: TestClient, session_id: str) -> None:
    response = api.post(f"/v1/sessions/{session_id}/turns", json={"text": ["my diagnosis"]})
    assert "diagnosis" not in response.text


def test_an_unknown_session_is_refused_before_its_upload_is_stored(api: TestClient, settings: Settings) -> None:
    assert problem(send_audio(api, str(uuid4()), wav())) == (404, "session_not_found")
    assert problem(send_audio(api, "not-a-uuid", wav())) == (422, "request_invalid")
    assert blobs(settings) == []


def test_a_bad_cursor_is_refused(api: TestClient, session_id: str) -> None:
    for cursor in ("x", "dHVybjotMQ==", "ZXZpbDox", "é", b64encode(b"turn:1099511627776").decode()):
        response = api.get(f"/v1/sessions/{session_id}/history", params={"cursor": cursor})
        assert problem(response) == (422, "request_invalid")


def test_unknown_paths_and_methods_get_a_problem_document(api: TestClient) -> None:
    assert problem(api.get("/v1/nothing")) == (404, "not_found")
    assert problem(api.put("/v1/sessions")) == (405, "method_not_allowed")


def test_healthz_and_readyz_report_the_state_of_the_servers(api: TestClient, settings: Settings) -> None:
    assert api.get("/healthz").json() == {"status": "ok"}
    assert api.get("/readyz").json() == {"database": "ok", "broker": "ok", "workers": 0}
    away = settings.updated(broker={"url": type(settings.broker.url)("redis://127.0.0.1:1/0")})
    with TestClient(create_app(away), raise_server_exceptions=False) as client:
        assert problem(client.get("/readyz")) == (503, "unavailable")
        assert client.get("/healthz").status_code == 200


def unsent(database: Database) -> Sequence[Message]:
    with database.transaction() as transaction:
        return transaction.outbox.unsent(timedelta(0))


def test_a_turn_is_accepted_while_the_broker_is_down_and_is_published_by_the_sweeper(
    api: TestClient, session_id: str, settings: Settings, database: Database
) -> None:
    away = settings.updated(broker={"url": type(settings.broker.url)("redis://127.0.0.1:1/0")})
    with TestClient(create_app(away), headers=dict(api.headers)) as client:
        assert client.post(f"/v1/sessions/{session_id}/turns", json={"text": "x"}).status_code == 202
    assert len(unsent(database)) == 1


def test_the_api_publishes_every_accepted_turn_before_it_exits(
    api: TestClient, session_id: str, settings: Settings, database: Database, broker: redis.Redis
) -> None:
    with TestClient(create_app(settings), headers=dict(api.headers)) as client:
        for _ in range(20):
            client.post(f"/v1/sessions/{session_id}/turns", json={"text": "x"})
    assert broker.llen("interactive") == 20
    assert not unsent(database)


def test_the_openapi_document_describes_both_ways_to_send_a_turn(api: TestClient) -> None:
    document = api.get("/openapi.json").json()
    content = document["paths"]["/v1/sessions/{session_id}/turns"]["post"]["requestBody"]["content"]
    assert content.keys() == {"application/json", "multipart/form-data"}
    assert all(part["schema"]["examples"] for part in content.values())


def test_the_documentation_pages_load_nothing_from_other_hosts(api: TestClient) -> None:
    page = api.get("/docs").text
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert sources
    assert all(api.get(source).status_code == 200 for source in sources if source.startswith("/"))
    assert not [source for source in sources if "//" in source]


def references(document: object) -> Iterator[str]:
    if isinstance(document, dict):
        node: dict[str, Any] = document
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(document, list):
        for value in document:
            yield from references(value)


def test_every_reference_in_the_openapi_document_resolves(api: TestClient) -> None:
    document = api.get("/openapi.json").json()
    found = set(references(document))
    assert found
    for reference in found:
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    errors = document["paths"]["/v1/sessions"]["post"]["responses"]["default"]["content"]
    assert "code" in errors["application/problem+json"]["schema"]["properties"]
