"""The processes that `tenor run` supervises."""

import logging
import os
import sys
from pathlib import Path

import pytest

from services.embedded.supervisor import Child
from shared.errors import SetupError
from tests.conftest import wait_for


def child(folder: Path, program: str) -> Child:
    return Child("worker", [sys.executable, "-c", program], dict(os.environ), folder)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import nonesuch", "ended with status 1: ModuleNotFoundError: No module named 'nonesuch'"),
        ("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL;"),
        ("raise SystemExit(75)", "ended with status 75;"),
    ],
)
def test_why_a_process_died_is_said_on_the_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, program: str, reason: str
) -> None:
    (tmp_path / "worker.log").write_text("what an earlier run wrote\n")
    process = child(tmp_path, program)
    wait_for(lambda: not process.is_running)
    with caplog.at_level(logging.WARNING):
        process.restart_if_dead()
    assert f"the worker {reason}" in caplog.text
    assert "restarted in 1 s" in caplog.text
    assert "earlier run" not in caplog.text


def test_a_process_that_is_set_up_wrongly_is_not_started_again(tmp_path: Path) -> None:
    process = child(tmp_path, "import sys; sys.stderr.write('no such bundle\\n'); sys.exit(78)")
    wait_for(lambda: not process.is_running)
    with pytest.raises(SetupError, match="no such bundle"):
        process.restart_if_dead()


def test_a_process_that_died_is_started_again(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    process = child(tmp_path, f"from pathlib import Path; Path({str(mark)!r}).open('a').write('x')")
    wait_for(lambda: process.restart_if_dead() is None and mark.exists() and mark.read_text() == "xx")
    process.kill()
