"""The child process that decodes audio for `shared.audio.sandbox`.

`python -m shared.audio.sandbox_process FD` starts it; FD is the file descriptor of its socket.

It serves one request after the other, and ends when its parent closes the socket or dies. Of Tenor it imports only the
decoder.

A request is 4 bytes with the length of the JSON that follows, such as
`{"operation": "probe", "max_duration_s": null, "size": 0}`. The recording is either a file descriptor, sent with the 4
bytes, or `size` bytes after the JSON.

An answer is 4 bytes with the length of a JSON object, and the object. It may be a part of a decoded recording, with the
numbers of its `channels` and `samples`, `start_s` and `warnings`; float32 samples follow, one channel after the other.
The last answer to a request is a result, an error as `code` and `detail`, or `died` with the name of the exception that
ends the child.
"""

import io
import json
import math
import os
import resource
import signal
import socket
import struct
import sys
from contextlib import suppress
from typing import IO, Any, cast

import numpy as np

from shared.audio.decoder import AudioPart, decode_parts, probe
from shared.errors import AudioError, AudioTooLong

LENGTH = struct.Struct("!I")

PART_S = 10.0
"""Least length of a part that is sent, in seconds; the last part may be shorter."""
OPEN_FILES = 32


class Child:
    """Serves the requests that arrive on a socket.

    Args:
        connection: the socket to the parent.
        memory_bytes: limit on the data of this process.
        cpu_s: limit on the CPU time for each part, or for an answer without parts, in seconds.
    """

    def __init__(self, connection: socket.socket, memory_bytes: int, cpu_s: int) -> None:
        self._connection = connection
        self._cpu_s = cpu_s
        for limit, value in (
            (resource.RLIMIT_CORE, 0),  # a core dump would contain the audio
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_NOFILE, OPEN_FILES),
            (resource.RLIMIT_DATA, memory_bytes),  # RLIMIT_AS would also count libraries and reservations
        ):
            _set_limit(limit, value)

    def serve(self) -> None:
        """Serve requests until the parent closes its end."""
        self._send_json({"ready": True})
        try:
            while (request := self._receive()) is not None:
                self._answer(*request)
        except ConnectionError:
            return
        except Exception as error:
            self._send_json({"died": type(error).__name__})
            raise

    def _receive(self) -> tuple[dict[str, Any], IO[bytes]] | None:
        prefix, descriptors, _, _ = socket.recv_fds(self._connection, LENGTH.size, 1)
        if not prefix:
            return None
        (length,) = LENGTH.unpack(prefix + self._exactly(LENGTH.size - len(prefix)))
        request = json.loads(self._exactly(length))
        if descriptors:
            return request, cast("IO[bytes]", io.BufferedReader(_Descriptor(descriptors[0])))
        return request, io.BytesIO(self._exactly(request["size"]))

    def _answer(self, request: dict[str, Any], recording: IO[bytes]) -> None:
        self._renew_cpu_time()
        with recording:
            try:
                if request["operation"] == "probe":
                    self._send_json(vars(probe(recording, request["max_duration_s"])))
                    return
                count = 0
                for part in decode_parts(recording, request["channels"], PART_S, request["max_duration_s"]):
                    self._send_part(part)
                    self._renew_cpu_time()
                    count += part.channels[0].size
                self._send_json({"ended_after": count})
            except (AudioError, AudioTooLong) as error:
                self._send_json({"code": error.code, "detail": error.detail})

    def _renew_cpu_time(self) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _set_limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + self._cpu_s)

    def _send_json(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self._connection.sendall(LENGTH.pack(len(data)) + data)

    def _send_part(self, part: AudioPart) -> None:
        warnings = [(warning.code, warning.message) for warning in part.warnings]
        size = part.channels[0].size
        header = {"channels": len(part.channels), "samples": size, "start_s": part.start_s, "warnings": warnings}
        self._send_json(header)
        for samples in part.channels:
            self._connection.sendall(np.ascontiguousarray(samples).data)

    def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        received = 0
        while received < size:
            count = self._connection.recv_into(memoryview(data)[received:])
            if not count:
                raise ConnectionError
            received += count
        return bytes(data)


class _Descriptor(io.RawIOBase):
    """A file opened by its descriptor. Reading does not move the file's position, which the parent shares."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._position = 0

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401
        data = os.pread(self._descriptor, len(buffer), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: os.fstat(self._descriptor).st_size}
        self._position = max(0, start[whence] + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def _set_limit(limit: int, value: int) -> None:
    """Set the soft limit and the hard limit, so that it cannot be raised. Only the limit on CPU time stays soft."""
    _, hard = resource.getrlimit(limit)
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with suppress(ValueError, OSError):  # macOS does not support all of them
        resource.setrlimit(limit, (soft, hard if limit == resource.RLIMIT_CPU else soft))


def main(descriptor: int, memory_bytes: int, cpu_s: int) -> None:
    """Serve the parent at the other end of a socket.

    SIGINT and SIGTERM are ignored: when they end the parent, it may still need this process to finish its work.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as connection:
        Child(connection, memory_bytes, cpu_s).serve()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
