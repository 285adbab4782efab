"""What a process checks at its start: that the installed packages can do what the first turn will ask of them."""

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
"""Half a second of a synthetic voice, which `shared/self_check_clip.py` made."""

_TRANSIENT = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)

TEXT = "Thank you, that is wonderful news!"


@contextmanager
def checking(step: str, *packages: str) -> Generator[None]:
    """Turn whatever goes wrong within into a SetupError that names the step, and the packages that do it.

    MemoryError and a lack of files, processes or disk space are raised unchanged, because the next start may find
    enough of them.

    Raises:
        SetupError: something went wrong.
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
    """Read the clip's header and decode it, as with an upload; shape [samples], 16 kHz.

    Raises:
        SetupError: PyAV does not do it.
    """
    with checking("decode a recording", "av"):
        # Here, because PyAV may be what cannot be imported.
        from shared.audio.decoder import decode, probe

        probe(CLIP)
        samples = decode(CLIP)
        if not samples.any():
            raise ValueError("a recording was decoded to silence")
    return samples


def decode_clip_in_child(sandbox: "AudioSandbox") -> None:
    """Decode the clip in a child process, as every recording that a client sends is.

    Raises:
        SetupError: no child starts, or it cannot decode.
    """
    with checking("decode a recording in a child process", "av"):
        sandbox.decode(CLIP)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
