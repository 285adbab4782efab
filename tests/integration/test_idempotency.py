"""A POST that is sent again with its `Idempotency-Key` has one effect, and gets its first answer again."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import IO, Any
from uuid import UUID, uuid4

import httpx2 as httpx
import psycopg
import pytest
from fastapi import Request
from fastapi.testclient import TestClient
from httpx2 import Response
from hypothesis import given
from hypothesis import strategies as st

from services.api.idempotency import read_key
from shared.domain.access import KeyRole
from shared.domain.idempotency import Answer, IdempotentRequest
from shared.errors import IdempotencyKeyInProgress, IdempotencyKeyReused, InvalidRequest
from shared.messaging.broker import Broker
from shared.settings import Settings
from shared.storage.blobs import BlobFolder
from shared.store.database import Database
from tests.audio_clips import tone, wav
from tests.conftest import wait_for
from tests.integration.conftest import MakeKey, serving
from tests.integration.test_api import blobs, problem
from workers.sweeper import Sweeper

KEY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
Post = Callable[..., Response]
Query = Callable[[str], list[tuple[Any, ...]]]

POSTS: dict[str, dict[str, Any]] = {
    "/v1/sessions": {"json": {"external_ref": "call-1", "subject_ref": "p-17", "consent": {"basis": "§ 6"}}},
    "/v1/sessions/{session_id}/turns": {"json": {"text": "I waited an hour!", "role": "customer"}},
    "/v1/sessions/{session_id}/turns as a form": {
        "files": {"audio": ("a.wav", wav(), "audio/wav")},
        "data": {"role": "customer", "text": "buenos días"},
    },
    "/v1/sessions/{session_id}/recordings": {"files": {"audio": ("a.wav", wav(), "audio/wav")}},
    "/v1/webhooks": {"json": {"url": "https://example.com/tenor"}},
}
"""A request for every POST of the API."""

_OTHER_SOUND = {"files": {"audio": ("a.wav", wav(tone(0.3)), "audio/wav")}}
CHANGES: dict[str, dict[str, Any]] = {
    "/v1/sessions": {"json": {"external_ref": "call-2"}},
    "/v1/sessions/{session_id}/turns": {"json": {"text": "I waited an hour!"}},
    "/v1/sessions/{session_id}/turns as a form": _OTHER_SOUND,
    "/v1/sessions/{session_id}/recordings": _OTHER_SOUND,
    "/v1/webhooks": {"json": {"url": "https://example.com/other"}},
}
"""What makes another request of each."""


@pytest.fixture(params=POSTS)
def post(request: pytest.FixtureRequest, api: TestClient, session_id: str) -> Post:
    """Sends a POST, with other fields or headers if need be."""
    path = request.param.split(" ")[0].format(session_id=session_id)
    return lambda **others: api.post(path, **(POSTS[request.param] | others))


@pytest.fixture
def query(settings: Settings) -> Iterator[Query]:
    with psycopg.connect(settings.database.url.get_secret_value(), autocommit=True) as connection:
        yield lambda text: connection.execute(text).fetchall()  # pyright: ignore[reportArgumentType, reportCallIssue]


def effects(settings: Settings) -> tuple[int, ...]:
    """How many rows there are of what a POST creates."""
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        tables = ("sessions", "turns", "jobs", "recordings", "webhooks")
        counts = ", ".join(f"(SELECT count(*) FROM {table})" for table in tables)
        row = connection.execute(f"SELECT {counts}").fetchone()  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert row is not None
    return row


def test_these_tests_cover_every_post_and_each_documents_the_idempotency_key(api: TestClient) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    posts = {path: operations["post"] for path, operations in paths.items() if "post" in operations}
    assert posts.keys() == {path.split(" ")[0] for path in POSTS}
    for operation in posts.values():
        (header,) = [parameter for parameter in operation["parameters"] if parameter["in"] == "header"]
        assert header["name"] == "Idempotency-Key"
        assert {"409", "422"} <= operation["responses"].keys()


def test_a_repeated_request_gets_the_first_answer_and_has_one_effect(post: Post, settings: Settings) -> None:
    first = post(headers=KEY)
    assert first.is_success
    assert "Idempotent-Replayed" not in first.headers
    after = effects(settings), len(blobs(settings))
    again = post(headers=KEY)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers.get("Location") == first.headers.get("Location")
    assert again.headers["Content-Type"] == first.headers["Content-Type"]
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (effects(settings), len(blobs(settings))) == after


def test_without_a_key_and_with_another_key_a_request_is_a_new_one(post: Post) -> None:
    answers = [post(), post(), post(headers=KEY), post(headers={"Idempotency-Key": '"another"'})]
    assert len({answer.json()["id"] for answer in answers}) == 4


@pytest.mark.parametrize(("name", "change"), CHANGES.items())
def test_another_request_with_the_same_key_is_refused(
    api: TestClient, session_id: str, settings: Settings, name: str, change: dict[str, Any]
) -> None:
    path = name.split(" ")[0].format(session_id=session_id)
    assert api.post(path, headers=KEY, **POSTS[name]).is_success
    after = effects(settings), len(blobs(settings))
    assert problem(api.post(path, headers=KEY, **(POSTS[name] | change))) == (422, "idempotency_key_reused")
    assert (effects(settings), len(blobs(settings))) == after


def test_a_key_that_was_used_on_another_path_is_refused(api: TestClient, session_id: str) -> None:
    other = api.post("/v1/sessions", json={}).json()["id"]
    turn = {"text": "hello"}
    assert api.post(f"/v1/sessions/{session_id}/turns", json=turn, headers=KEY).status_code == 202
    for path, body in ((f"/v1/sessions/{other}/turns", turn), ("/v1/sessions", {})):
        assert problem(api.post(path, json=body, headers=KEY)) == (422, "idempotency_key_reused")


def test_json_in_another_order_and_spacing_is_the_same_request(api: TestClient, session_id: str) -> None:
    path, headers = f"/v1/sessions/{session_id}/turns", KEY | {"Content-Type": "application/json"}
    first = api.post(path, content=b'{"text": "caf\xc3\xa9", "role": "agent"}', headers=headers)
    again = api.post(path, content=b'{ "role":"agent",\n "text":"caf\\u00e9" }', headers=headers)
    assert again.content == first.content
    changed = api.post(path, content=b'{"text": "cafe", "role": "agent"}', headers=headers)
    assert problem(changed) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("path", ["turns", "recordings"])
def test_a_form_with_another_boundary_order_and_file_name_is_the_same_request(
    api: TestClient, session_id: str, path: str
) -> None:
    sound = wav()

    def send(
        boundary: str, name: str, media_type: str = "audio/wav", fields: tuple[str, ...] = ("lane", "audio")
    ) -> Response:
        parts = {
            "lane": b'name="lane"\r\n\r\nbulk',
            "audio": f'name="audio"; filename="{name}"\r\nContent-Type: {media_type}\r\n\r\n'.encode() + sound,
        }
        form = b"".join(
            f"--{boundary}\r\nContent-Disposition: form-data; ".encode() + parts[field] + b"\r\n" for field in fields
        )
        headers = KEY | {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        content = form + f"--{boundary}--\r\n".encode()
        return api.post(f"/v1/sessions/{session_id}/{path}", content=content, headers=headers)

    first = send("one", "a.wav")
    again = send("another", "b.wav", fields=("audio", "lane"))
    assert (first.status_code, again.content) == (202, first.content)
    assert problem(send("one", "a.wav", fields=("audio",))) == (422, "idempotency_key_reused")
    assert problem(send("one", "a.wav", media_type="audio/x-wav")) == (422, "idempotency_key_reused")


def test_tenants_do_not_share_keys(api: TestClient, make_key: MakeKey) -> None:
    mine, again = (api.post("/v1/sessions", json={}, headers=KEY) for _ in range(2))
    colleague = {"Authorization": f"Bearer {make_key('acme', KeyRole.writer)}"}
    stranger = {"Authorization": f"Bearer {make_key('globex', KeyRole.writer)}"}
    assert api.post("/v1/sessions", json={}, headers=KEY | colleague).content == mine.content == again.content
    assert api.post("/v1/sessions", json={}, headers=KEY | stranger).json()["id"] != mine.json()["id"]


def test_an_error_is_not_stored_and_its_key_can_be_used_again(api: TestClient, session_id: str) -> None:
    path = f"/v1/sessions/{session_id}/turns"
    assert problem(api.post(path, json={"text": " "}, headers=KEY)) == (422, "request_invalid")
    unknown = f"/v1/sessions/{uuid4()}/turns"
    assert problem(api.post(unknown, json={"text": "x"}, headers=KEY)) == (404, "session_not_found")
    assert api.post(path, json={"text": "x"}, headers=KEY).status_code == 202


def test_concurrent_requests_with_the_same_key_have_one_effect(post: Post, settings: Settings) -> None:
    before = effects(settings)
    with ThreadPoolExecutor(12) as threads:
        answers = [answer.result() for answer in [threads.submit(post, headers=KEY) for _ in range(12)]]
    done = [answer for answer in answers if answer.is_success]
    assert len({answer.content for answer in done}) == 1
    assert sum("Idempotent-Replayed" not in answer.headers for answer in done) == 1
    for answer in answers:
        if not answer.is_success:
            assert problem(answer) == (409, "idempotency_key_in_progress")
            assert answer.json()["retryable"] is True
            assert answer.headers["Retry-After"].isdecimal()
    many = effects(settings)
    assert post(headers=KEY).content == done[0].content
    assert post().is_success
    one = effects(settings)
    assert [after - then for after, then in zip(many, before, strict=True)] == [
        after - then for after, then in zip(one, many, strict=True)
    ]


def test_of_one_batch_only_the_first_request_with_a_key_is_carried_out(api: TestClient, database: Database) -> None:
    created = api.post("/v1/sessions", json={}, headers=KEY).json()["id"]
    with database.transaction() as transaction:
        tenant_id = transaction.accounts.ensure_tenant("acme")
        new, other = (IdempotentRequest(tenant_id, key, "0" * 64) for key in ("new", "other"))
        first, again, without, third = transaction.idempotency.find_all([new, replace(new), None, other])
        assert (first, without, third) == (None, None, None)
        assert isinstance(again, IdempotencyKeyInProgress)
        transaction.idempotency.save((new, Answer(201, "{}", session_id=UUID(created))), (None, Answer(201, "{}")))
    with database.transaction() as transaction:
        assert transaction.idempotency.find(new) == Answer(201, "{}", session_id=UUID(created), replayed=True)
        assert transaction.idempotency.find(other) is None


def test_many_repetitions_of_an_answered_request_are_all_answered(post: Post, settings: Settings) -> None:
    first = post(headers=KEY)
    after = effects(settings)
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: post(headers=KEY), range(24)))
    assert {(answer.status_code, answer.content) for answer in answers} == {(first.status_code, first.content)}
    assert all(answer.headers["Idempotent-Replayed"] == "true" for answer in answers)
    assert effects(settings) == after


def test_many_other_requests_with_an_answered_key_are_all_refused(api: TestClient, session_id: str) -> None:
    path = f"/v1/sessions/{session_id}/turns"
    assert api.post(path, json={"text": "first"}, headers=KEY).is_success
    with ThreadPoolExecutor(12) as threads:
        answers = threads.map(lambda number: api.post(path, json={"text": f"{number}"}, headers=KEY), range(24))
        assert {problem(answer) for answer in answers} == {(422, "idempotency_key_reused")}


def test_an_answer_is_found_several_times_in_one_batch_and_while_another_transaction_finds_it(
    api: TestClient, database: Database
) -> None:
    created = api.post("/v1/sessions", json={}).json()["id"]
    with database.transaction() as transaction:
        tenant_id = transaction.accounts.ensure_tenant("acme")
        request = IdempotentRequest(tenant_id, "answered", "0" * 64)
        assert transaction.idempotency.find(request) is None
        transaction.idempotency.save((request, Answer(201, "{}", session_id=UUID(created))))
    replay = Answer(201, "{}", session_id=UUID(created), replayed=True)
    with database.transaction() as one, database.transaction() as two:
        for transaction in (one, two):
            *same, other = transaction.idempotency.find_all(
                [replace(request), replace(request), replace(request, fingerprint="1" * 64)]
            )
            assert same == [replay, replay]
            assert isinstance(other, IdempotencyKeyReused)


def test_audio_of_a_concurrent_repeated_request_is_not_stored_twice(
    api: TestClient, session_id: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = BlobFolder.put
    path, form = f"/v1/sessions/{session_id}/turns", POSTS["/v1/sessions/{session_id}/turns as a form"]
    faster: list[Response] = []

    def put_second(folder: BlobFolder, uri: str, source: IO[bytes]) -> str:
        monkeypatch.setattr(BlobFolder, "put", put)
        faster.append(api.post(path, headers=KEY, **form))
        return put(folder, uri, source)

    monkeypatch.setattr(BlobFolder, "put", put_second)
    assert problem(api.post(path, headers=KEY, **form)) == (409, "idempotency_key_in_progress")
    assert api.post(path, headers=KEY, **form).content == faster[0].content
    assert len(blobs(settings)) == 1
    assert len(api.get(f"/v1/sessions/{session_id}/history").json()["turns"]) == 1


def test_a_request_repeated_after_the_api_was_killed_has_one_effect(
    api: TestClient, session_id: str, settings: Settings, query: Query
) -> None:
    path, turn, headers = f"/v1/sessions/{session_id}/turns", {"text": "hello"}, KEY | dict(api.headers)
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with (
        serving(settings) as (url, process),
        ThreadPoolExecutor(1) as threads,
        psycopg.connect(settings.database.url.get_secret_value()) as holder,
    ):
        holder.execute("LOCK TABLE jobs IN SHARE MODE")  # the turn is inserted, and its job has to wait
        lost = threads.submit(httpx.post, url + path, json=turn, headers=headers, timeout=60, trust_env=False)
        wait_for(lambda: bool(query(waits)))
        assert problem(api.post(path, json=turn, headers=KEY)) == (409, "idempotency_key_in_progress")
        process.kill()
        assert isinstance(lost.exception(60), httpx.TransportError)
    answered: list[Response] = []

    def is_done() -> bool:
        answered.append(api.post(path, json=turn, headers=KEY))
        return answered[-1].is_success

    wait_for(is_done)
    assert "Idempotent-Replayed" not in answered[-1].headers
    assert api.post(path, json=turn, headers=KEY).content == answered[-1].content
    assert query("SELECT count(*) FROM turns") == [(1,)]


def test_an_answer_is_kept_for_a_day_and_then_deleted(
    api: TestClient, settings: Settings, database: Database, query: Query
) -> None:
    def send(key: str) -> str:
        return api.post("/v1/sessions", json={}, headers={"Idempotency-Key": key}).json()["id"]

    old, young = send("old"), send("young")
    for key, hours in (("old", 24.1), ("young", 23.9)):
        since = f"now() - interval '{hours} hours'"
        query(f"UPDATE idempotency_keys SET created_at = {since} WHERE key = '{key}' RETURNING 1")
    Sweeper(settings, database, Broker(settings.broker.url), None).sweep()
    assert query("SELECT key FROM idempotency_keys") == [("young",)]
    assert send("young") == young
    assert send("old") != old


def test_answers_are_deleted_with_their_session_or_webhook(post: Post, api: TestClient, query: Query) -> None:
    created = post(headers=KEY).json()
    kept = "SELECT body FROM idempotency_keys"
    assert created["id"] in query(kept)[0][0]
    if "url" in created:
        api.delete(f"/v1/webhooks/{created['id']}")
    else:
        api.delete(f"/v1/sessions/{created.get('session_id', created['id'])}")
    assert query(kept) == []


def with_keys(*values: str) -> Request:
    return Request({"type": "http", "headers": [(b"idempotency-key", value.encode("latin-1")) for value in values]})


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255))
def test_a_key_may_be_any_string_of_visible_ascii(key: str) -> None:
    quoted = key.replace("\\", "\\\\").replace('"', '\\"')
    assert read_key(with_keys(f'"{quoted}"')) == key
    if not set(key) & set(' ",'):
        assert read_key(with_keys(key)) == key


@given(st.text(st.characters(max_codepoint=0xFF), max_size=20))
def test_any_header_value_is_either_a_valid_key_or_refused(value: str) -> None:
    try:
        key = read_key(with_keys(value))
    except InvalidRequest:
        return
    assert key
    assert key.isascii()
    assert key.isprintable()


@pytest.mark.parametrize(
    "values", [("",), (" ",), ('""',), ("a b",), ("a,b",), ('"a',), ('"a"b',), ("é",), ("x" * 256,), ("a", "a")]
)
def test_a_key_that_is_malformed_is_refused(values: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key: should be one key"):
        read_key(with_keys(*values))


def test_a_malformed_key_is_refused_by_every_post(post: Post, settings: Settings) -> None:
    before = effects(settings)
    assert problem(post(headers={"Idempotency-Key": ""})) == (422, "request_invalid")
    assert effects(settings) == before
