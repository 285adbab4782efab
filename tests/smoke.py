"""Analyses one text and one recording through `tenor run`, with nothing installed but what running needs.

Run by `make smoke` under each interpreter: `python -m tests.smoke`. Exit status 0 if both were analysed, 1 if not.
"""

import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2 as httpx

from services.embedded.servers import free_port

RECORDING = Path(__file__).parent / "assets" / "english.ogg"


@contextmanager
def run_tenor(data_dir: str) -> Iterator[httpx.Client]:
    """A client of a `tenor run` that is ready, which is stopped on leaving."""
    port = free_port()
    command = [sys.executable, "-m", "services.cli", "run", "--port", str(port)]
    env = {**os.environ, "TENOR_DATA_DIR": data_dir}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            key = next(filter(None, (re.search(r"tnr_\S+", line) for line in process.stdout)), None)
            if key is None:
                sys.exit(f"tenor run ended with status {process.wait()}")
            headers = {"Authorization": f"Bearer {key.group()}"}
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60, trust_env=False
            ) as client:
                yield client
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def analyze(client: httpx.Client, text: str | None = None, recording: Path | None = None) -> dict[str, Any]:
    """Send a turn with a text or a recording, and return it once it is analysed."""
    session_id = client.post("/v1/sessions", json={}).raise_for_status().json()["id"]
    audio = None if recording is None else {"audio": recording.read_bytes()}
    body = None if text is None else {"text": text}
    accepted = client.post(f"/v1/sessions/{session_id}/turns", json=body, files=audio).raise_for_status()
    found = client.get(accepted.headers["Location"], params={"wait": 30}).raise_for_status().json()
    if found["status"] != "succeeded":
        sys.exit(f"the turn is {found['status']}: {found}")
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as data_dir, run_tenor(data_dir) as client:
        text = analyze(client, text="I can't believe it, this is wonderful!")
        audio = analyze(client, recording=RECORDING)
    packages = ", ".join(f"{name} {version(name)}" for name in ("av", "torch", "faster-whisper"))
    print(f"Python {platform.python_version()} ({packages}):")
    print(f"  text:      {text['prediction']['emotion']}")
    transcript = "".join(segment["text"] for segment in audio["transcript"]["segments"])
    print(f"  recording: {audio['prediction']['emotion']}, {audio['prediction']['modalities_used']}, {transcript!r}")


if __name__ == "__main__":
    main()
