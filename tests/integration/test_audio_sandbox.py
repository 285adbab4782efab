"""Child processes decode what somebody sent: with the same results, within limits, and nothing of theirs spreads."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, cast

import numpy as np
import psutil
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.api.dependencies import Resources
from services.api.ingest import Ingest
from shared.audio import decoder as audio
from shared.audio.decoder import SAMPLE_RATE, AudioInfo
from shared.audio.sandbox import AudioSandbox, Limits
from shared.audio.sandbox_process import LENGTH
from shared.errors import (
    AudioDecoderFailed,
    AudioEmpty,
    AudioError,
    AudioNotFinite,
    AudioTooLong,
    AudioUndecodable,
    Unavailable,
)
from tests.audio_clips import encoded, flac_with_picture, riff, tone, wav
from tests.conftest import wait_for

LINUX = sys.platform == "linux"
AMR_HEADER = b"#!AMR\n"
SILENT_AMR_FRAME = b"\x3c" + bytes(31)
"""20 ms."""


OpenSandbox = Callable[..., AudioSandbox]


@pytest.fixture
def open_sandbox() -> Iterator[OpenSandbox]:
    """Opens sandboxes that are closed when the test ends."""
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(closing(AudioSandbox(*arguments)))


@pytest.fixture
def sandbox(open_sandbox: OpenSandbox) -> AudioSandbox:
    return open_sandbox(2)


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """Twenty minutes of sound, which would take 77 MB at once."""
    return sparse_wav(tmp_path / "long.wav", 1200, SAMPLE_RATE, 1)


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """As many samples per second as are allowed; many seconds of work."""
    return sparse_wav(tmp_path / "dense.wav", 2000, 192_000, 8)


def sparse_wav(path: Path, seconds: int, rate: int, channels: int) -> Path:
    """A WAV file of 8 bits per sample that takes no room on the disk, as there is nothing in it but zeros."""
    size = seconds * rate * channels
    path.write_bytes(riff(b"", promised=size, bits=8, channels=channels, rate=rate))
    os.truncate(path, path.stat().st_size + size)
    return path


def children() -> dict[int, psutil.Process]:
    """The processes that decode for this one, those of other tests included."""
    return {
        child.pid: child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "shared.audio.sandbox_process" in child.cmdline()
    }


def started(sandbox: AudioSandbox) -> psutil.Process:
    """The one child of a new sandbox."""
    before = children()
    sandbox.probe(io.BytesIO(wav()))
    (new,) = children().keys() - before.keys()
    return psutil.Process(new)


def spooled(data: bytes, max_size: int) -> IO[bytes]:
    file = SpooledTemporaryFile(max_size=max_size)  # noqa: SIM115
    file.write(data)
    return cast("IO[bytes]", file)


@pytest.mark.parametrize("kind", ["path", "in memory", "not yet on disk", "on disk"])
def test_every_source_is_decoded_as_in_this_process(kind: str, sandbox: AudioSandbox, tmp_path: Path) -> None:
    data = encoded("flac", np.stack([tone(25), 0.2 * tone(25, 300)]))
    (tmp_path / "two:channels.flac").write_bytes(data)
    source = {
        "path": lambda: tmp_path / "two:channels.flac",
        "in memory": lambda: io.BytesIO(data),
        "not yet on disk": lambda: spooled(data, 2**30),
        "on disk": lambda: spooled(data, 1),
    }[kind]()
    assert sandbox.probe(source) == audio.probe(io.BytesIO(data))
    np.testing.assert_array_equal(sandbox.decode(source).samples, audio.decode(io.BytesIO(data)).samples)
    parts = list(sandbox.decode_parts(source, 2, 12))
    assert len(parts) == 2
    assert all(channel.size >= 12 * SAMPLE_RATE for channel in parts[0].channels)
    (whole,) = audio.decode_parts(io.BytesIO(data), 2, 100)
    for number, channel in enumerate(whole.channels):
        np.testing.assert_array_equal(np.concatenate([part.channels[number] for part in parts]), channel)
    if not isinstance(source, Path):
        with source:
            assert source.read() == data, "the position in the file is this process's alone"


def test_a_partly_read_file_keeps_its_position(sandbox: AudioSandbox) -> None:
    data = np.random.default_rng(0).bytes(2 * SAMPLE_RATE)
    with spooled(riff(data), 1) as file:
        file.seek(0)
        file.read(100)
        sandbox.decode(file)
        assert file.read() == riff(data)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", AudioEmpty),
        (riff(b""), AudioEmpty),
        (b"these are words, not sound" * 99, AudioUndecodable),
        (encoded("flac", tone(4))[:5000], AudioUndecodable),
        (riff(np.full(SAMPLE_RATE, np.nan, "<f4").tobytes(), bits=32, kind=3), AudioNotFinite),
        (wav(tone(6)), AudioTooLong),
    ],
    ids=["no bytes", "no samples", "text", "cut off", "not finite", "too long"],
)
def test_an_error_comes_with_its_code_and_message(
    data: bytes, error: type[AudioError | AudioTooLong], sandbox: AudioSandbox
) -> None:
    child = started(sandbox)
    with pytest.raises(error) as expected:
        audio.decode(io.BytesIO(data), 5)
    with pytest.raises(error) as got:
        sandbox.decode(io.BytesIO(data), 5)
    assert got.value.detail == expected.value.detail
    assert child.is_running(), "a file that is refused costs no process"


def test_a_path_that_cannot_be_opened_is_named(sandbox: AudioSandbox, tmp_path: Path) -> None:
    with pytest.raises(AudioUndecodable, match="cannot be opened: Is a directory"):
        sandbox.decode(tmp_path)


def test_a_file_that_takes_too_much_memory_fails_alone(
    caplog: pytest.LogCaptureFixture, open_sandbox: OpenSandbox
) -> None:
    if not LINUX:
        pytest.skip("only Linux limits a process's data")
    sandbox = open_sandbox(1, Limits(memory_bytes=128 * 2**20))
    large = riff(bytes(2 * 64 * 10 * SAMPLE_RATE), channels=64)
    with pytest.raises(AudioDecoderFailed):
        list(sandbox.decode_parts(io.BytesIO(large), 64, 10))
    assert caplog.text.count("a process that decodes recordings died") == 2
    assert sandbox.decode(io.BytesIO(wav())).samples.size == SAMPLE_RATE


def test_a_file_that_takes_too_much_cpu_time_fails_alone(
    dense: Path, caplog: pytest.LogCaptureFixture, open_sandbox: OpenSandbox
) -> None:
    sandbox = open_sandbox(1, Limits(cpu_s=0))  # to the end of the second that it is in
    with pytest.raises(AudioDecoderFailed, match="too much CPU time"):
        sandbox.decode(dense)
    assert caplog.text.count("killed by SIGXCPU") == 1  # a second child would do the same work
    assert sandbox.decode(io.BytesIO(wav())).samples.size == SAMPLE_RATE


def test_the_cpu_time_is_counted_for_each_part_alone(dense: Path, open_sandbox: OpenSandbox) -> None:
    sandbox = open_sandbox(1, Limits(cpu_s=1))
    child = started(sandbox)
    parts = sandbox.decode_parts(dense, 8, 10)
    while sum(child.cpu_times()[:2]) < 2.5:
        assert len(next(parts).channels) == 8
    assert child.is_running()


def test_a_recording_that_crashes_the_decoder_once_is_decoded_whole(sandbox: AudioSandbox) -> None:
    child = started(sandbox)
    sound = np.random.default_rng(0).uniform(-1, 1, 60 * SAMPLE_RATE).astype(np.float32)
    parts = sandbox.decode_parts(io.BytesIO(audio.encode(sound)), 1, 10)
    first = next(parts)
    child.send_signal(signal.SIGSEGV)
    whole = np.concatenate([part.channels[0] for part in [first, *parts]])
    assert np.abs(whole - sound).max() <= 1 / 32768


def test_a_recording_that_crashes_the_decoder_twice_is_refused(
    long: Path, sandbox: AudioSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    before, got = children(), 0

    def crash_at_every_part() -> None:
        nonlocal got
        for _ in sandbox.decode_parts(long, 1, 10):
            got += 1
            for pid in children().keys() - before.keys():
                os.kill(pid, signal.SIGSEGV)

    with pytest.raises(AudioDecoderFailed) as failed:
        crash_at_every_part()
    assert (failed.value.code, failed.value.status, failed.value.retryable) == ("audio_decoder_failed", 422, False)
    assert caplog.text.count("killed by SIGSEGV") == 2
    assert 2 <= got < 100
    assert sandbox.probe(io.BytesIO(wav())).channels == 1


def test_a_child_that_hangs_is_killed_and_another_does_its_work(
    caplog: pytest.LogCaptureFixture, open_sandbox: OpenSandbox
) -> None:
    sandbox = open_sandbox(1, Limits(timeout_s=3))
    child = started(sandbox)
    child.suspend()
    assert sandbox.decode(io.BytesIO(wav())).samples.size == SAMPLE_RATE
    assert "it did not answer for 3 s" in caplog.text
    assert not child.is_running()


def test_a_child_that_died_while_idle_is_replaced_without_an_error(
    sandbox: AudioSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    child = started(sandbox)
    child.kill()
    wait_for(lambda: child.status() == psutil.STATUS_ZOMBIE)
    assert sandbox.decode(io.BytesIO(wav())).samples.size == SAMPLE_RATE
    assert not caplog.records


def test_a_child_inherits_no_secrets_and_no_open_files(sandbox: AudioSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TENOR_DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "HOME"):
        monkeypatch.setenv(name, "hunter2")
    child = started(sandbox)
    assert "PATH" in child.environ()
    assert "hunter2" not in str(child.environ())
    assert "hunter2" not in str(child.cmdline())
    assert not child.net_connections("inet")
    assert child.num_fds() == 4, "its standard streams and its socket"
    if LINUX:
        limits = {name: child.rlimit(getattr(psutil, f"RLIMIT_{name}"))[0] for name in ("CORE", "FSIZE", "NOFILE")}
        assert limits == {"CORE": 0, "FSIZE": 0, "NOFILE": 32}
        assert child.rlimit(psutil.RLIMIT_DATA)[0] == 512 * 2**20
        assert 0 < child.rlimit(psutil.RLIMIT_CPU)[0] < 60


PARENT = """
import io, signal, sys, time
import numpy as np
from shared.audio.decoder import encode
from shared.audio.sandbox import AudioSandbox
from tests.audio_clips import wav
import psutil
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sandbox = AudioSandbox(2)
parts = sandbox.decode_parts(io.BytesIO(encode(np.zeros(600 * 16_000, np.float32))), 1, 10)
next(parts)
sandbox.probe(io.BytesIO(wav()))
print(*(child.pid for child in psutil.Process().children()), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_children_exit_when_their_parent_exits(end: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        busy, idle = (psutil.Process(int(pid)) for pid in parent.stdout.readline().split())
        parent.send_signal(end)
    for child in (busy, idle):
        wait_for(lambda child=child: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_children_ignore_sigint_and_sigterm(sandbox: AudioSandbox) -> None:
    """As a worker is, which then finishes its jobs; a terminal's Ctrl-C reaches all its processes."""
    child = started(sandbox)
    for told in (signal.SIGINT, signal.SIGTERM):
        child.send_signal(told)
    sandbox.decode(io.BytesIO(wav()))
    assert child.is_running()


def test_threads_share_the_children(open_sandbox: OpenSandbox) -> None:
    sandbox, before = open_sandbox(3), children()
    sounds = {hertz: wav(tone(2, hertz)) for hertz in range(200, 1000, 100)}

    def decode(hertz: int) -> None:
        for _ in range(5):
            samples = sandbox.decode(io.BytesIO(sounds[hertz])).samples
            assert np.argmax(np.abs(np.fft.rfft(samples))) / 2 == pytest.approx(hertz, abs=1)

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(decode, hertz) for hertz in sounds]:
            done.result()
    assert len(children().keys() - before.keys()) <= 3


def test_a_child_decodes_no_further_than_its_parent_takes(long: Path, sandbox: AudioSandbox) -> None:
    child = started(sandbox)
    parts = sandbox.decode_parts(long, 1, 60)
    count = next(parts).channels[0].size
    time.sleep(0.3)  # it fills the socket
    before = sum(child.cpu_times()[:2])
    time.sleep(0.5)
    assert sum(child.cpu_times()[:2]) - before < 0.1
    memory = []
    for part in parts:
        count += part.channels[0].size
        memory.append(child.memory_info().rss)
    assert count == 1200 * SAMPLE_RATE
    assert max(memory) < 100 * 2**20


def test_decoding_that_is_abandoned_leaves_no_child_running(long: Path, open_sandbox: OpenSandbox) -> None:
    sandbox = open_sandbox(1)
    child = started(sandbox)
    parts = sandbox.decode_parts(long, 1, 10)
    next(parts)
    del parts
    assert not child.is_running()
    assert sandbox.decode(io.BytesIO(wav())).samples.size == SAMPLE_RATE


def test_a_child_is_replaced_after_so_many_requests(open_sandbox: OpenSandbox) -> None:
    sandbox = open_sandbox(1, Limits(requests=2))
    child = started(sandbox)
    sandbox.probe(io.BytesIO(wav()))
    assert not child.is_running()
    assert sandbox.probe(io.BytesIO(wav())).channels == 1


def test_a_closed_sandbox_leaves_no_children(sandbox: AudioSandbox) -> None:
    idle = started(sandbox)
    sandbox.close()
    assert not idle.is_running()
    late = threading.Thread(target=sandbox.decode, args=(io.BytesIO(wav()),))
    before = children()
    late.start()
    late.join()
    assert children().keys() <= before.keys()


def test_a_child_that_cannot_be_started_is_not_an_error_of_the_audio(
    sandbox: AudioSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program, message in (("/nowhere/python", "can be started: No such file"), ("false", "does not start: exit")):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(Unavailable, match=message):
            sandbox.decode(io.BytesIO(wav()))


def message(answer: bytes) -> bytes:
    return LENGTH.pack(len(answer)) + answer


def part(channels: int, samples: int, warnings: str = "[]") -> bytes:
    header = f'{{"channels": {channels}, "samples": {samples}, "start_s": 0.0, "warnings": {warnings}}}'
    return message(header.encode())


ANSWERS = {
    "bytes": os.urandom(1000),
    "no object": message(b"[]"),
    "no result": message(b"{}"),
    "endless text": LENGTH.pack(2**32 - 1) + b"[" * 2**17,
    "no number": message(b'{"duration_s": NaN, "channels": 1}'),
    "no samples": message(b'{"ended_after": 0}'),
    "more than its memory": part(1, 2**32 - 1),
    "fewer than no samples": part(1, -1),
    "other channels": part(2, 1) + bytes(8),
    "too much": part(1, 2 * SAMPLE_RATE) + bytes(8 * SAMPLE_RATE),
    "unknown warning": part(1, 1, '[["hello", ""]]') + bytes(4),
    "no warning": part(1, 1, "3") + bytes(4),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_the_answer_of_a_compromised_child_is_validated(
    answer: bytes, monkeypatch: pytest.MonkeyPatch, open_sandbox: OpenSandbox
) -> None:
    def start(theirs: socket.socket, *_: object) -> subprocess.Popen[bytes]:
        ready = message(b"{}")
        program = (
            f"import os, signal, sys; os.write({theirs.fileno()}, {ready!r} + sys.stdin.buffer.read()); signal.pause()"
        )
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", program],
            stdin=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
        )
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(answer)
        return process

    monkeypatch.setattr("shared.audio.sandbox._start", start)
    sandbox = open_sandbox(1, Limits(timeout_s=5))
    with pytest.raises(AudioDecoderFailed):
        sandbox.decode(io.BytesIO(wav()), 1)
    with pytest.raises(AudioDecoderFailed):
        sandbox.probe(io.BytesIO(wav()))


@pytest.mark.skipif(not LINUX, reason="only Linux tells another process's limits")
def test_a_child_cannot_raise_its_limits(sandbox: AudioSandbox) -> None:
    child = started(sandbox)
    for limit in (psutil.RLIMIT_DATA, psutil.RLIMIT_NOFILE, psutil.RLIMIT_FSIZE, psutil.RLIMIT_CORE):
        soft, hard = child.rlimit(limit)
        assert soft == hard != psutil.RLIM_INFINITY


def test_a_large_embedded_picture_is_not_decoded(sandbox: AudioSandbox) -> None:
    child = started(sandbox)
    assert sandbox.decode(io.BytesIO(flac_with_picture(tone(2), 16_000))).samples.size == 2 * SAMPLE_RATE
    assert child.memory_info().rss < 150 * 2**20


def test_packets_are_counted_up_to_the_longest_duration_that_is_allowed(sandbox: AudioSandbox) -> None:
    hours = io.BytesIO(AMR_HEADER + SILENT_AMR_FRAME * (3 * 3600 * 50))
    child = started(sandbox)
    before = sum(child.cpu_times()[:2])
    with pytest.raises(AudioTooLong, match="longer than the 300 s allowed"):
        sandbox.probe(hours, 300)
    assert sum(child.cpu_times()[:2]) - before < 0.3
    short = io.BytesIO(AMR_HEADER + SILENT_AMR_FRAME * 500)
    assert sandbox.probe(short, 10) == audio.probe(short) == AudioInfo(10.0, 1)


def probe_uploads_in(sandbox: AudioSandbox, api: TestClient) -> None:
    """Replaces the sandbox of a running API."""
    app = cast("FastAPI", api.app)
    opened: Resources = app.state.resources
    ingest = Ingest(opened.settings, opened.database, opened.blobs, sandbox, opened.publisher)
    app.state.resources = replace(opened, ingest=ingest)


def test_uploads_that_wait_to_be_probed_do_not_block_other_requests(
    api: TestClient, session_id: str, open_sandbox: OpenSandbox
) -> None:
    slow = open_sandbox(1, Limits(timeout_s=20))
    probe_uploads_in(slow, api)
    child = started(slow)
    child.suspend()
    path = f"/v1/sessions/{session_id}/turns"
    with ThreadPoolExecutor(50) as threads:  # more than the threads of the API
        waiting = [threads.submit(api.post, path, files={"audio": ("a.wav", wav(), "audio/wav")}) for _ in range(50)]
        time.sleep(1)
        assert api.get("/healthz").status_code == 200
        assert api.get("/readyz").status_code == 200
        assert api.post(path, json={"text": "hello"}).status_code == 202
        assert not any(upload.done() for upload in waiting)
        child.resume()
        assert {upload.result().status_code for upload in waiting} == {202}


STARVED = Limits(memory_bytes=1)
"""A child starts with what memory it has, and gets no more."""


@pytest.mark.skipif(not LINUX, reason="only Linux limits a process's data")
def test_an_upload_that_crashes_the_probe_is_refused(
    api: TestClient, session_id: str, open_sandbox: OpenSandbox
) -> None:
    probe_uploads_in(open_sandbox(1, STARVED), api)
    upload = {"audio": ("call.wav", wav(tone(25)), "audio/wav")}
    refused = api.post(f"/v1/sessions/{session_id}/turns", files=upload)
    assert (refused.status_code, refused.json()["code"]) == (422, "audio_decoder_failed")
    assert refused.json()["detail"].startswith("the recording crashed the decoder, or took more than its memory")
    assert api.post(f"/v1/sessions/{session_id}/turns", json={"text": "hello"}).status_code == 202
