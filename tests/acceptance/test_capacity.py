"""The traffic of a turn in the database and the broker, counted on an embedded run."""

from pathlib import Path

import pytest

from benchmarks.capacity import traffic
from benchmarks.capacity.traffic import measure_traffic
from shared.settings import Settings
from tests.acceptance.conftest import ASSETS


def test_a_turns_traffic_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(traffic, "IDLE_S", 3.0)
    monkeypatch.setattr(traffic, "SETTLE_S", 3.0)
    per_turn, idle = measure_traffic(Settings(data_dir=tmp_path), [ASSETS / "calm.ogg"], 4)
    # At least a session, a turn, its job, recording, outbox row, transcript, prediction and audio summary.
    assert 8 <= per_turn.rows < 200
    # Postgres reports late and the idle traffic is subtracted, so some transactions of four turns are missed.
    assert 1 <= per_turn.transactions < 200
    assert per_turn.wal_bytes > 1000
    assert 1 <= per_turn.redis_commands < 100
    assert per_turn.worker_cpu_s > per_turn.redis_cpu_s
    assert 0 < idle.transactions < 50
