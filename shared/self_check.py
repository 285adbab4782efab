"""The self-check at the start of a process: whether the installed packages can do what the first turn needs."""

import errno
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import SetupError, Unavailable

if TYPE_CHECKING:
    from shared.audio.decoder import Samples
    from shared.audio.sandbox import AudioSandbox

CLIP = Path(__file__).with_name("self_check.flac")
"""Half a second of synthetic speech, made by `shared/self_check_clip.py`."""

_TRANSIENT = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)

TEXT = "Thank you, that is wonderful news!"


@contextmanager
def check_step(step: str, *packages: str) -> Generator[None]:
    """Context manager that turns an error of the block into a SetupError, which names the step and its packages.

    Errors that the next start may not meet are raised unchanged: a lack of memory, files, processes or disk space.

    Args:
        step: a verb phrase, such as "decode a recording".
        packages: the distributions that do it. The message gives their installed versions.

    Raises:
        SetupError: the block raised an error.
    """
    try:
        yield
    except (SetupError, MemoryError, Unavailable):
        raise
    except Exception as error:
        if "out of memory" in str(error) or (isinstance(error, OSError) and error.errno in _TRANSIENT):
            raise
        installed = ", ".join(f"{package} {_version(package)}" for package in packages)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise SetupError(
            f"the self-check cannot {step} with {installed} ({reason}): install the packages that this version of "
            "Tenor was tested with, as the README says"
        ) from error


def decode_clip() -> "Samples":
    """Returns the self-check's clip, probed and decoded as an upload is; 16 kHz mono, shape [samples].

    Raises:
        SetupError: PyAV cannot decode it.
    """
    with check_step("decode a recording", "av"):
        # Imported here, because importing PyAV may be what fails.
        from shared.audio.decoder import decode, probe

        probe(CLIP)
        samples = decode(CLIP).samples
        if not samples.any():
            raise ValueError("a recording was decoded to silence")
    return samples


def decode_clip_in_child(sandbox: "AudioSandbox") -> None:
    """Decode the self-check's clip in a child process, as every recording that a client sends.

    Raises:
        SetupError: no child process starts, or it cannot decode.
    """
    with check_step("decode a recording in a child process", "av"):
        sandbox.decode(CLIP)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
