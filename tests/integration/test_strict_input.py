"""What a request names and the API does not know is refused, and the error says what may have been meant."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.audio_clips import wav
from tests.integration.test_api import problem

TURNS, RECORDINGS = "/v1/sessions/{session_id}/turns", "/v1/sessions/{session_id}/recordings"
SOUND = {"audio": ("a.wav", wav(), "audio/wav")}


@pytest.mark.parametrize(
    ("path", "request_", "detail"),
    [
        (TURNS, {"json": {"text": "x", "ocurred_at": "2026-01-01"}}, "'ocurred_at': did you mean 'occurred_at'?"),
        (
            TURNS,
            {"json": {"text": "x", "xyz": 1}},
            "'xyz': the fields are context, lane, occurred_at, role",
        ),
        (TURNS, {"files": SOUND, "data": {"spaeker": "Ada"}}, "'spaeker': did you mean 'speaker'?"),
        (RECORDINGS, {"files": SOUND, "data": {"channel": "[]"}}, "'channel': did you mean 'channels'?"),
        (
            RECORDINGS,
            {"files": SOUND, "data": {"channels": '[{"rol": "agent"}]'}},
            "channels.0: there is no field 'rol'",
        ),
        (RECORDINGS, {"files": {"audoi": SOUND["audio"]}}, "audio: a form must hold the recording"),
        ("/v1/sessions", {"json": {"external_reff": "x"}}, "'external_reff': did you mean 'external_ref'?"),
        (
            "/v1/sessions",
            {"json": {"consent": {"retain_sound": True}}},
            "consent: there is no field 'retain_sound': did you mean 'retain_audio'?",
        ),
        ("/v1/webhooks", {"json": {"uri": "https://example.com"}}, "'uri': did you mean 'url'?"),
    ],
)
def test_an_unknown_field_is_refused(
    api: TestClient, session_id: str, path: str, request_: dict[str, Any], detail: str
) -> None:
    response = api.post(path.format(session_id=session_id), **request_)
    assert problem(response) == (422, "request_invalid")
    assert detail in response.json()["detail"]


def test_an_unknown_query_parameter_is_refused_by_every_route(api: TestClient) -> None:
    document = api.get("/openapi.json").json()
    tried = 0
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if not path.startswith("/v1/"):
                continue
            url = path.format(session_id="0", turn_id="0", recording_id="0", webhook_id="0")
            response = api.request(method, url, params={"verbose": "1"})
            assert problem(response) == (422, "request_invalid"), (method, path)
            assert "there is no query parameter 'verbose'" in response.json()["detail"]
            assert "422" in operation["responses"]
            tried += 1
    assert tried >= 10


def test_the_error_names_the_nearest_query_parameter(api: TestClient, session_id: str) -> None:
    def detail(path: str, **query: str) -> str:
        return api.get(path, params=query).json()["detail"]

    session = f"/v1/sessions/{session_id}"
    assert detail(f"{session}/history", Limit="5") == "there is no query parameter 'Limit': did you mean 'limit'?"
    assert detail(f"{session}/history", page="5").endswith("'page': the query parameters are cursor, limit")
    assert detail(session, page="5") == "there is no query parameter 'page': this request takes none"
    assert api.get(f"{session}/history", params={"limit": "5"}).status_code == 200


def test_an_unknown_name_is_not_repeated_at_length(api: TestClient) -> None:
    response = api.post("/v1/sessions", json={"x" * 10_000: 1})
    assert problem(response) == (422, "request_invalid")
    assert len(response.content) < 1000


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/docs", "/openapi.json"])
def test_probes_and_pages_may_have_any_query(api: TestClient, path: str) -> None:
    assert api.get(path, params={"cachebuster": "1"}).status_code == 200
