"""Settings come from environment variables by area, and a wrong one is an error of one line."""

import logging
from pathlib import Path

import pytest

from shared.errors import SetupError
from shared.settings import Settings, get_settings, log_unknown_variables


@pytest.fixture(autouse=True)
def fresh_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    get_settings.cache_clear()


def test_an_env_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"TENOR_OBSERVABILITY_LOG_FORMAT=\xff\n")
    with pytest.raises(SetupError, match=rf"{tmp_path}/.env cannot be read: it is not UTF-8"):
        get_settings()


def test_a_variable_sets_the_setting_of_its_area(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENOR_WORKER_INTERACTIVE_THREADS", "7")
    monkeypatch.setenv("TENOR_JOBS_LEASE_S", "3")
    monkeypatch.setenv("TENOR_BATCHES_TRANSCRIBE", '{"items": 8}')
    settings = get_settings()
    assert (settings.worker.interactive_threads, settings.jobs.lease_s, settings.batches.transcribe.items) == (7, 3, 8)
    assert settings.batches.transcribe.budget == Settings.model_fields["batches"].default.transcribe.budget


def test_a_wrong_value_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENOR_JOBS_LEASE_S", "soon")
    with pytest.raises(SetupError, match=r"^TENOR_JOBS_LEASE_S: Input should be a valid number"):
        get_settings()


def test_a_wrong_secret_is_not_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENOR_BROKER_URL", "amqp://:hunter2@localhost")
    with pytest.raises(SetupError, match=r"^TENOR_BROKER_URL: .*should begin with redis://") as error:
        get_settings()
    assert "hunter2" not in error.value.detail


def test_a_variable_that_names_no_setting_is_logged_with_the_most_similar_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TENOR_JOB_LEASE_S", "3")
    monkeypatch.setenv("TENOR_JOBS_LEASE_S", "3")
    # Kubernetes sets these for a service named tenor-api.
    monkeypatch.setenv("TENOR_API_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("TENOR_API_PORT_8000_TCP", "tcp://10.0.0.1:8000")
    with caplog.at_level(logging.WARNING):
        log_unknown_variables()
    assert caplog.messages == ["TENOR_JOB_LEASE_S names no setting and is ignored: did you mean TENOR_JOBS_LEASE_S?"]
    assert get_settings().jobs.lease_s == 3


def test_changed_settings_keep_the_others_of_their_area() -> None:
    settings = Settings().updated(jobs={"lease_s": 1.0})
    assert (settings.jobs.lease_s, settings.jobs.max_attempts) == (1.0, Settings().jobs.max_attempts)
