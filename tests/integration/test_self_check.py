"""A process whose packages cannot do their work says so before it takes any."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from services.embedded.servers import free_port
from shared.audio.decoder import decode
from shared.audio.sandbox import AudioSandbox, Limits
from shared.errors import SetupError, Unavailable, WeightsMissing
from shared.self_check import CLIP, check_step, decode_clip, decode_clip_in_child
from shared.self_check_clip import make_clip
from shared.settings import Settings

INCOMPATIBLE_AV = """
import av
def open(*args, **options):
    raise TypeError("open() got an unexpected keyword argument 'metadata_errors'")
av.open = open
"""

Start = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Start:
    """Runs a module in a Python whose PyAV is an incompatible one."""
    (tmp_path / "sitecustomize.py").write_text(INCOMPATIBLE_AV)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", str(Path.cwd()))]),
        "TENOR_DATA_DIR": str(settings.data_dir),
        "TENOR_DATABASE_URL": settings.database.url.get_secret_value(),
        "TENOR_BROKER_URL": settings.broker.url.get_secret_value(),
    }

    def run(module: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", *module]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=180, check=False)

    return run


@pytest.mark.parametrize("module", [["services.cli", "serve", "--port"], ["workers"]], ids=["api", "worker"])
def test_an_incompatible_decoder_is_named_in_one_line(start: Start, module: list[str]) -> None:
    if module[-1] == "--port":
        module = [*module, str(free_port())]
    result = start(module)
    assert result.returncode == 78, result.stderr
    (line,) = result.stderr.splitlines()
    assert "cannot decode a recording with av " in line


def test_the_self_check_clip_equals_the_output_of_its_script() -> None:
    assert np.abs(decode(CLIP).samples - make_clip()).max() <= 2**-15
    assert decode_clip().size == make_clip().size


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce the limit on memory")
def test_a_child_process_that_cannot_decode_is_named_in_one_line() -> None:
    sandbox = AudioSandbox(children=1, limits=Limits(memory_bytes=2**20))
    with pytest.raises(SetupError, match=r"cannot decode a recording in a child process with av \d"):
        decode_clip_in_child(sandbox)
    sandbox.close()


def test_a_failed_check_names_the_step_and_its_packages() -> None:
    with (
        pytest.raises(SetupError, match=r"cannot sing with numpy \d.*, nonesuch \(not installed\) \(ValueError: a b\)"),
        check_step("sing", "numpy", "nonesuch"),
    ):
        raise ValueError("a\nb")


@pytest.mark.parametrize(
    "error",
    [
        WeightsMissing("no weights"),
        MemoryError(),
        RuntimeError("CUDA: out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        Unavailable("no process can be started"),
    ],
)
def test_errors_that_are_not_of_the_installation_are_not_changed(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, check_step("sing", "numpy"):
        raise error
    assert caught.value is error
