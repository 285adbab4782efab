"""`tenor run`, as its user meets it."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import httpx2 as httpx
import numpy as np
import psutil
import pytest

from services.embedded.servers import free_port
from shared.audio.decoder import decode, encode
from shared.domain.job import OPEN
from tests.acceptance.conftest import ASSETS
from tests.conftest import PATIENCE, wait_for
from tests.trace_collector import collecting

READY_S = 90
Undisturbed = tuple["subprocess.Popen[str]", httpx.Client, Path]


@contextmanager
def running(
    data_dir: Path, host: str = "127.0.0.1", **settings: str
) -> Iterator[tuple["subprocess.Popen[str]", httpx.Client]]:
    """A started `tenor run`, and a client with the key and the URL that it printed; Ctrl-C at the end.

    `settings` are environment variables; where there are none, it recovers sooner than by default.
    """
    port = free_port()
    env = {**os.environ, "TENOR_DATA_DIR": str(data_dir)}
    env |= settings or {"TENOR_JOBS_LEASE_S": "3", "TENOR_WORKER_SWEEP_INTERVAL_S": "0.5"}
    command = [sys.executable, "-m", "services.cli", "run", "--host", host, "--port", str(port)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        key, said = None, ""
        deadline = time.monotonic() + READY_S * PATIENCE
        while key is None:
            line = process.stdout.readline()
            assert line, said + _logs(data_dir)
            assert time.monotonic() < deadline, _logs(data_dir)
            said += line
            key = re.search(r"tnr_\S+", line)
        url = re.search(rf"http://\S+:{port}", said)
        assert url is not None
        headers = {"Authorization": f"Bearer {key.group()}"}
        with httpx.Client(base_url=url.group(), headers=headers, timeout=60, trust_env=False) as client:
            yield process, client
        process.send_signal(signal.SIGINT)
        assert process.wait(60 * PATIENCE) in (0, -signal.SIGKILL)  # the latter where the test itself killed it
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _logs(data_dir: Path) -> str:
    return "\n".join(path.read_text() for path in (data_dir / "logs").glob("*.log"))


def analyzed(client: httpx.Client, session_id: str) -> dict[str, object]:
    recording = (ASSETS / "english.ogg").read_bytes()
    response = client.post(f"/v1/sessions/{session_id}/turns", files={"audio": ("a.ogg", recording, "audio/ogg")})
    assert response.status_code == 202
    deadline = time.monotonic() + 60 * PATIENCE
    turn: dict[str, object] = {"status": "queued"}
    while turn["status"] in OPEN and time.monotonic() < deadline:
        turn = client.get(response.headers["Location"], params={"wait": 10}).json()
    assert turn["status"] == "succeeded", turn
    return turn


def worker_of(tenor: "subprocess.Popen[str]") -> psutil.Process:
    (worker,) = (child for child in psutil.Process(tenor.pid).children() if "workers" in " ".join(child.cmdline()))
    return worker


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    """A run that no test disturbs: its process, a client and its data folder."""
    data_dir = tmp_path_factory.mktemp("undisturbed") / "data"
    with running(data_dir) as (process, client):
        yield process, client, data_dir


def test_an_audio_turn_is_analysed_after_processes_are_killed_and_is_stored_across_restarts(tmp_path: Path) -> None:
    with running(tmp_path / "data") as (tenor, client):
        session_id = client.post("/v1/sessions", json={}).json()["id"]
        first = analyzed(client, session_id)
        assert first["prediction"]["modalities_used"] == ["text", "audio"]  # pyright: ignore[reportIndexIssue]

        worker_of(tenor).kill()
        second = analyzed(client, session_id)
        worker = worker_of(tenor)
        psutil.Process(int((tmp_path / "data" / "valkey" / "valkey.pid").read_text())).kill()
        third = analyzed(client, session_id)
        assert worker_of(tenor) == worker
        left = [process.pid for process in psutil.Process(tenor.pid).children(recursive=True)]
    assert not any(psutil.pid_exists(pid) for pid in left)

    with running(tmp_path / "data") as (_, client):
        history = client.get(f"/v1/sessions/{session_id}/history").json()["turns"]
        assert [turn["id"] for turn in history] == [first["id"], second["id"], third["id"]]


def test_processes_of_a_killed_run_are_stopped_by_the_next_run(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running(data_dir) as (tenor, client):
        session_id = client.post("/v1/sessions", json={}).json()["id"]
        left = psutil.Process(tenor.pid).children(recursive=True)
        tenor.kill()
        tenor.wait()
    assert any(process.is_running() for process in left)
    with running(data_dir) as (_, client):
        assert analyzed(client, session_id)["index"] == 0
        assert not any(process.is_running() for process in left)
        pidfiles = (data_dir / "valkey" / "valkey.pid", data_dir / "postgres" / "postmaster.pid")
        servers = [psutil.Process(int(pidfile.read_text().split()[0])) for pidfile in pidfiles]
    for server in servers:
        assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


def test_tenor_run_reports_status_metrics_and_traces(tmp_path: Path) -> None:
    data_dir, port = tmp_path / "data", free_port()
    with collecting() as collector:
        watched = {
            "TENOR_OBSERVABILITY_METRICS_PORT": str(port),
            "TENOR_OBSERVABILITY_OTLP_ENDPOINT": collector.url,
            "TENOR_OBSERVABILITY_LOG_FORMAT": "json",
        }
        with running(data_dir, **watched) as (_, client):
            session_id = client.post("/v1/sessions", json={}).json()["id"]
            url = f"/v1/sessions/{session_id}/turns"
            sent = client.post(url, json={"text": "I am happy"}, headers={"X-Request-ID": "call-17"})
            client.get(sent.headers["Location"], params={"wait": 30})
            env = {**os.environ, "TENOR_DATA_DIR": str(data_dir)}
            command = [sys.executable, "-m", "services.cli", "status", "--format", "json"]
            status = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
            api, worker = (httpx.get(f"http://127.0.0.1:{place}/metrics").text for place in (port, port + 1))
    assert (status.returncode, status.stderr) == (0, "")
    (alive,) = json.loads(status.stdout)["stored"]["workers"]
    assert alive["device"]
    assert 'tenor_queue_depth{lane="bulk"} 0.0' in api
    assert 'tenor_jobs_total{lane="interactive",outcome="succeeded"} 1.0' in worker
    # Both sent what they had before they ended.
    (trace,) = {span.trace for span in collector.spans() if span.name == "attempt"}
    assert {span.service for span in collector.spans() if span.trace == trace} == {"tenor-api", "tenor-worker"}
    for name in ("api", "worker"):
        said = (data_dir / "logs" / f"{name}.log").read_text().splitlines()
        lines = [json.loads(line) for line in said if line not in ("", "worker: Warm shutdown (MainProcess)")]
        assert any(line.get("correlation_id") == "call-17" for line in lines), name


@pytest.mark.parametrize("declared", [True, False])
def test_an_upload_of_200_mb_is_refused_with_memory_flat(undisturbed: Undisturbed, declared: bool) -> None:
    tenor, client, _ = undisturbed
    session_id = client.post("/v1/sessions", json={}).json()["id"]
    (api,) = (child for child in psutil.Process(tenor.pid).children() if "serve" in child.cmdline())
    before = api.memory_info().rss
    peak = before
    head = b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a.wav"\r\n\r\n'

    def chunks() -> Iterator[bytes]:
        nonlocal peak
        yield head
        for _ in range(200):
            peak = max(peak, api.memory_info().rss)
            yield bytes(2**20)

    headers = {"content-type": "multipart/form-data; boundary=b"} | (
        {"content-length": str(len(head) + 200 * 2**20)} if declared else {}
    )
    try:
        response = client.post(f"/v1/sessions/{session_id}/turns", content=chunks(), headers=headers)
        assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    except httpx.WriteError:
        pass  # the connection was closed while we were still sending: refused all the same
    assert peak - before < 32 * 2**20
    assert analyzed(client, session_id)["status"] == "succeeded"


def test_a_port_or_data_folder_in_use_is_named(undisturbed: Undisturbed, tmp_path: Path) -> None:
    _, client, data_dir = undisturbed
    port = str(client.base_url.port)
    for folder, said in ((data_dir, "another Tenor runs on"), (tmp_path / "other", "--port")):
        env = {**os.environ, "TENOR_DATA_DIR": str(folder)}
        command = [sys.executable, "-m", "services.cli", "run", "--port", port]
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 78
        assert said in result.stderr


def test_a_copy_that_was_made_of_a_running_folder_leaves_the_original_alone(tmp_path: Path) -> None:
    with running(tmp_path / "data") as (tenor, client):
        before = client.post("/v1/sessions", json={}).json()["id"]
        theirs = psutil.Process(tenor.pid).children(recursive=True)
        # Files of a running server may go meanwhile.
        subprocess.run(["cp", "-a", tmp_path / "data", tmp_path / "copy"], check=False, stderr=subprocess.DEVNULL)
        with running(tmp_path / "copy") as (_, copy):
            addresses = json.loads((tmp_path / "copy" / "embedded.json").read_text())
            for url in (addresses["database_url"], addresses["broker_url"]):
                assert str(tmp_path / "copy") in unquote(url)
            assert copy.get(f"/v1/sessions/{before}/history").status_code == 200
            only_in_copy = copy.post("/v1/sessions", json={}).json()["id"]
            assert all(process.is_running() for process in theirs)
            assert client.get(f"/v1/sessions/{only_in_copy}/history").status_code == 404
        assert analyzed(client, before)["status"] == "succeeded"


PROXIES: dict[str, str] = dict.fromkeys(
    ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9"
)
SOCKS = {"ALL_PROXY": "socks5://127.0.0.1:9", "all_proxy": "socks5://127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def test_a_run_becomes_ready_on_ipv6_and_calls_itself_through_no_proxy(tmp_path: Path) -> None:
    host = "::" if has_ipv6() else "0.0.0.0"
    with running(tmp_path / "data", host, **PROXIES, **SOCKS) as (_, client):
        assert client.base_url.host in ("::1", "127.0.0.1")
        assert client.get("/readyz").json()["workers"] == 1


def test_stopping_names_what_it_waits_for_and_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    recording = encode(np.tile(decode(ASSETS / "english.ogg").samples, 60))
    with running(tmp_path / "data", TENOR_WORKER_DRAIN_S="600") as (tenor, client):
        files = {"audio": ("a.flac", recording, "audio/flac")}
        turns = f"/v1/sessions/{client.post('/v1/sessions', json={}).json()['id']}/turns"
        turn = client.post(turns, files=files).headers["Location"]
        wait_for(lambda: client.get(turn).json()["status"] == "running")
        tenor.send_signal(signal.SIGINT)
        assert tenor.stdout is not None
        while not (line := tenor.stdout.readline()).startswith("Stopping"):
            assert line
        assert line == "Stopping: waiting up to 600 s for 1 running job. Press Ctrl-C again to stop at once.\n"
        tenor.send_signal(signal.SIGINT)
        assert tenor.wait(30 * PATIENCE) == 0
        said = tenor.stdout.read()
        assert "Stopped at once: 1 running job will run again after the next start." in said
        assert "Traceback" not in said


@pytest.mark.parametrize(("host", "reason"), [("192.0.2.1", "not an address"), ("nonesuch.invalid", "not resolve")])
def test_an_unusable_host_is_a_one_line_error(tmp_path: Path, host: str, reason: str) -> None:
    env = {**os.environ, "TENOR_DATA_DIR": str(tmp_path / "data")}
    command = [sys.executable, "-m", "services.cli", "run", "--host", host, "--port", str(free_port())]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 78
    (line,) = (line for line in result.stderr.splitlines() if not line.startswith("Starting"))
    assert reason in line


def test_the_error_of_a_worker_that_cannot_start_is_printed(tmp_path: Path) -> None:
    env = {**os.environ, "TENOR_DATA_DIR": str(tmp_path / "data"), "TENOR_MODELS_WHISPER_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "services.cli", "run", "--port", str(free_port())]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90 * PATIENCE, check=False)
    assert result.returncode == 78
    assert f"TENOR_MODELS_WHISPER_DIR is {tmp_path}, which lacks model.bin" in result.stderr.splitlines()[-1]
