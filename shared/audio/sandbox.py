"""Probing and decoding of clients' recordings in child processes with limits on memory and time.

FFmpeg is a million lines of C, and it reads files from untrusted clients. If a file crashes it, exhausts its memory or
never ends, that costs one child process. The child inherits neither Tenor's settings nor its connections. It runs as
the same user, so an attacker who takes it over can still read that user's files.
"""

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, cast

import numpy as np

from shared.audio import sandbox_process
from shared.audio.decoder import SAMPLE_RATE, AudioInfo, AudioPart, DecodedAudio, Source, join_parts, open_source
from shared.audio.sandbox_process import LENGTH
from shared.domain.warning import AnalysisWarning, WarningCode
from shared.errors import AudioDecoderFailed, AudioEmpty, AudioNotFinite, AudioTooLong, AudioUndecodable, Unavailable

_log = logging.getLogger(__name__)

_VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""The environment variables that a child inherits. Tenor's settings are not among them, because they hold passwords."""
_ERRORS = {error.code: error for error in (AudioEmpty, AudioUndecodable, AudioNotFinite, AudioTooLong)}
_MAX_JSON_BYTES = 2**16
_INVALID_ANSWER = "it sent an invalid answer"
_REMEDY = "convert it, for example to FLAC, and send it again"
_START_S = 60
_ATTEMPTS = 2
"""A child may die through no fault of the recording, for example because the machine runs out of memory."""


@dataclass(frozen=True)
class Limits:
    """Limits of a child process.

    Attributes:
        memory_bytes: most data in memory at once.
        cpu_s: most CPU time in seconds for a probe, or for decoding 10 s of audio.
        timeout_s: longest wait in seconds for the result of a probe, or for 10 s of decoded audio.
        requests: number of requests after which the child is replaced.
    """

    memory_bytes: int = 512 * 2**20
    cpu_s: int = 30
    timeout_s: float = 120
    requests: int = 1000


_LIMITS = Limits()


class AudioSandbox:
    """A pool of child processes that probe and decode recordings. Threads may share it.

    Children are started on demand. They end when this process ends, even if it is killed.

    Args:
        children: most children that work at the same time; further calls wait. The default is the number of cores.
        limits: the limits of each child.

    Attributes:
        children: most children that work at the same time.
    """

    def __init__(self, children: int | None = None, limits: Limits = _LIMITS) -> None:
        self.children = children or os.cpu_count() or 1
        self._limits = limits
        self._free = threading.BoundedSemaphore(self.children)
        self._idle: list[_Child] = []
        self._closed = False
        self._lock = threading.Lock()

    def probe(self, source: Source, max_duration_s: float | None = None) -> AudioInfo:
        """Returns a recording's duration and channels, as `shared.audio.decoder.probe` does.

        Raises:
            AudioEmpty, AudioUndecodable, AudioTooLong: as `shared.audio.decoder.probe` does.
            AudioDecoderFailed: two children died while they read the recording, or it took too much CPU time.
            Unavailable: no child can be started.
        """
        with open_source(source) as file:
            for _ in range(_ATTEMPTS):
                with self._child() as child:
                    return child.probe(file, max_duration_s)
        raise _failed()

    def decode(self, source: Source, max_duration_s: float | None = None) -> DecodedAudio:
        """Returns a recording as 16 kHz mono float32, as `shared.audio.decoder.decode` does.

        Raises:
            AudioEmpty, AudioUndecodable, AudioNotFinite, AudioTooLong: as `shared.audio.decoder.decode` does.
            AudioDecoderFailed: two children died while they decoded the recording, or it took too much CPU time.
            Unavailable: no child can be started.
        """
        return join_parts(self._parts(source, 1, max_duration_s))

    def decode_parts(
        self, source: Source, channels: int, part_s: float, max_duration_s: float | None = None
    ) -> Iterator[AudioPart]:
        """Decodes a long recording in parts, as `shared.audio.decoder.decode_parts` does.

        The child waits until the caller takes the next part.

        Raises:
            AudioError: as `decode` does, but perhaps after some parts.
        """
        pending: list[AudioPart] = []
        for part in self._parts(source, channels, max_duration_s):
            pending.append(part)
            if sum(part.channels[0].size for part in pending) >= part_s * SAMPLE_RATE:
                yield _joined(pending)
                pending = []
        if pending:
            yield _joined(pending)

    def close(self) -> None:
        """End the idle children now, and the others when they have finished their request."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()

    def _parts(self, source: Source, channels: int, max_duration_s: float | None) -> Iterator[AudioPart]:
        """Yields the parts that a child sends. A second child starts over and skips what was yielded."""
        yielded = 0
        with open_source(source) as file:
            for _ in range(_ATTEMPTS):
                with self._child() as child:
                    for number, part in enumerate(child.decode(file, channels, max_duration_s)):
                        if number >= yielded:
                            yielded += 1
                            yield part
                    return
        raise _failed()

    @contextmanager
    def _child(self) -> Generator["_Child"]:
        """Context manager that gives a child for one request. If the child dies, that is logged and the block ends.

        Raises:
            AudioDecoderFailed: the request took too much CPU time. It is not retried, because it would do so again.
        """
        with self._free:
            child = self._take()
            try:
                yield child
            except _ChildDied as death:
                _log.warning("a process that decodes recordings died: %s", death)
                if death.took_too_much_cpu_time:
                    raise AudioDecoderFailed(f"the recording took the decoder too much CPU time: {_REMEDY}") from None
            finally:
                self._give_back(child)

    def _take(self) -> "_Child":
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.alive:
                    return child
                child.end()
        return _Child(self._limits)

    def _give_back(self, child: "_Child") -> None:
        with self._lock:
            if child.reusable and not self._closed:
                self._idle.append(child)
                return
        child.end()


class _ChildDied(Exception):
    """The child process died, does not answer, or sent an invalid answer. The message says which."""

    took_too_much_cpu_time = False


class _Child:
    """A process that runs `shared.audio.sandbox_process`, and the socket to it. One thread at a time may use it.

    Everything that it sends is checked, because a malicious file may have taken it over.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._served = 0
        self._busy = True
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = _start(theirs, limits, self._socket)
        self._socket.settimeout(_START_S)
        try:
            self._receive_json()
        except _ChildDied as death:
            self.end()
            raise Unavailable(f"the process that decodes recordings does not start: {death}") from None
        self._socket.settimeout(limits.timeout_s)
        self._busy = False

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def reusable(self) -> bool:
        return not self._busy and self._served < self._limits.requests

    def probe(self, file: IO[bytes], max_duration_s: float | None) -> AudioInfo:
        """Raises _ChildDied."""
        self._send({"operation": "probe", "max_duration_s": max_duration_s}, file)
        match self._result(self._receive_json()):
            case {"duration_s": None, "channels": int(channels)}:
                info = AudioInfo(None, channels)
            case {"duration_s": float(duration_s), "channels": int(channels)} if math.isfinite(duration_s):
                info = AudioInfo(duration_s, channels)
            case _:
                raise _ChildDied(_INVALID_ANSWER)
        self._busy = False
        return info

    def decode(self, file: IO[bytes], channels: int, max_duration_s: float | None) -> Iterator[AudioPart]:
        """Raises _ChildDied."""
        self._send({"operation": "decode", "channels": channels, "max_duration_s": max_duration_s}, file)
        longest = math.inf if max_duration_s is None else max_duration_s * SAMPLE_RATE
        count = 0
        while True:
            match self._result(self._receive_json()):
                case {"channels": int(sent), "samples": int(size), "start_s": float(start_s), "warnings": warnings} if (
                    sent == channels and math.isfinite(start_s)
                ):
                    count += size
                    if not 0 < size * channels * 4 <= self._limits.memory_bytes or count > longest:
                        raise _ChildDied(_INVALID_ANSWER)
                    samples = np.empty((channels, size), np.float32)
                    self._receive_into(samples.data.cast("B"))
                    yield AudioPart(list(samples), start_s, _warnings(warnings))
                case {"ended_after": int(size)} if size == count > 0:
                    self._busy = False
                    return
                case _:
                    raise _ChildDied(_INVALID_ANSWER)

    def end(self) -> None:
        """Kill the process."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _send(self, request: dict[str, Any], file: IO[bytes]) -> None:
        self._served += 1
        self._busy = True
        descriptor = _descriptor(file)
        file.seek(0)  # it may already have been sent to another child
        recording = file.read() if descriptor is None else b""
        data = json.dumps(request | {"size": len(recording)}).encode()
        try:
            socket.send_fds(self._socket, [LENGTH.pack(len(data))], [] if descriptor is None else [descriptor])
            self._socket.sendall(data)
            self._socket.sendall(recording)
        except OSError:
            raise self._death() from None

    def _receive_json(self) -> dict[str, Any]:
        (length,) = LENGTH.unpack(self._receive(LENGTH.size))
        try:
            answer = json.loads(self._receive(min(length, _MAX_JSON_BYTES)))
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise _ChildDied(_INVALID_ANSWER)
        answer = cast("dict[str, Any]", answer)
        if "died" in answer:
            raise _ChildDied(f"{answer['died']!r:.100}")
        return answer

    def _result(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Returns an answer, or raises the error that it stands for."""
        error = _ERRORS.get(str(answer.get("code")))
        if error is None:
            return answer
        self._busy = False
        raise error(f"{answer.get('detail')!s:.500}")

    def _receive(self, size: int) -> bytes:
        data = bytearray(size)
        self._receive_into(memoryview(data))
        return bytes(data)

    def _receive_into(self, buffer: memoryview) -> None:
        try:
            while buffer:
                count = self._socket.recv_into(buffer)
                if not count:
                    raise self._death()
                buffer = buffer[count:]
        except TimeoutError:
            raise _ChildDied(f"it did not answer for {self._socket.gettimeout():g} s") from None
        except OSError:
            raise self._death() from None

    def _death(self) -> _ChildDied:
        self._process.kill()  # does nothing if it has already died
        status = self._process.wait()
        death = _ChildDied(f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}")
        death.took_too_much_cpu_time = status == -signal.SIGXCPU
        return death


def _joined(parts: Sequence[AudioPart]) -> AudioPart:
    """Returns consecutive parts as one."""
    channels = zip(*(part.channels for part in parts), strict=True)
    return AudioPart([np.concatenate(channel) for channel in channels], parts[-1].start_s, parts[-1].warnings)


def _warnings(sent: Any) -> tuple[AnalysisWarning, ...]:  # noqa: ANN401
    """Raises _ChildDied if a child sent anything but warnings."""
    try:
        return tuple(AnalysisWarning(WarningCode(code), f"{message!s:.500}") for code, message in sent)
    except (TypeError, ValueError):
        raise _ChildDied(_INVALID_ANSWER) from None


def _start(theirs: socket.socket, limits: Limits, ours: socket.socket) -> subprocess.Popen[bytes]:
    root = str(Path(sandbox_process.__file__).parents[1])
    environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)]), "OPENBLAS_NUM_THREADS": "1"}
    arguments = [theirs.fileno(), limits.memory_bytes, limits.cpu_s]
    try:
        return subprocess.Popen(
            # PYTHONPATH has all paths, so that `site` is not needed (-S), and the current folder is left out (-P).
            [sys.executable, "-S", "-P", "-m", sandbox_process.__name__, *map(str, arguments)],
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        ours.close()
        raise Unavailable(f"no process that decodes recordings can be started: {error.strerror}") from error


def _descriptor(file: IO[bytes]) -> int | None:
    """Returns the descriptor of a flushed file, or None if the file is in memory."""
    # `fileno` would move a spooled file to the disk.
    if isinstance(file, SpooledTemporaryFile) and file.name is None:
        return None
    try:
        file.flush()
        return file.fileno()
    except OSError:
        return None


def _failed() -> AudioDecoderFailed:
    return AudioDecoderFailed(
        f"the recording crashed the decoder, or took more than its memory or time, {_ATTEMPTS} times: {_REMEDY}"
    )
