"""What the autoscaler asks of the database."""

from pathlib import Path

import psycopg
import pytest
import yaml
from fastapi.testclient import TestClient

from shared.domain.job import Lane
from shared.settings import Settings

SCALING = sorted((Path(__file__).parents[2] / "docker" / "kubernetes").rglob("scaling.yaml"))


def query(path: Path, lane: Lane) -> str:
    (scaled,) = (item for item in yaml.safe_load_all(path.read_text()) if item["kind"] == "ScaledObject")
    queries = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    (asked,) = (query for query in queries if f"'{lane}'" in query)
    return asked


@pytest.mark.parametrize("lane", [Lane.interactive, Lane.bulk, Lane.recording])
@pytest.mark.parametrize("path", SCALING, ids=lambda path: path.parent.name)
def test_the_autoscaler_sees_how_long_a_lane_has_waited(
    api: TestClient, session_id: str, settings: Settings, path: Path, lane: Lane
) -> None:
    with psycopg.connect(settings.database.url.get_secret_value(), autocommit=True) as connection:

        def asked() -> object:
            row = connection.execute(query(path, lane)).fetchone()  # pyright: ignore[reportArgumentType, reportCallIssue]
            return row and row[0]

        for _ in range(2):
            api.post(f"/v1/sessions/{session_id}/turns", json={"text": "hello"})
        connection.execute("UPDATE jobs SET lane = 'another'")
        assert asked() == 0
        connection.execute("UPDATE jobs SET lane = %s", [lane.value])
        oldest = "SELECT id FROM jobs LIMIT 1"
        connection.execute(f"UPDATE jobs SET created_at = now() - interval '1 hour' WHERE id = ({oldest})")
        waited = asked()
        assert isinstance(waited, int)
        assert 3600 <= waited < 3700
        connection.execute("UPDATE jobs SET status = 'running'")
        assert asked() == 0
