"""`tenor serve`: where it listens, and who asks it whether it lives."""

import ast
import json
import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from services.embedded.servers import free_port
from shared.settings import Settings
from tests.integration.conftest import serving

ROOT = Path(__file__).parents[2]
PROXY = "http://127.0.0.1:9"
PROXIES: dict[str, str] = dict.fromkeys(
    ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"), PROXY
)


@pytest.mark.parametrize("host", ["::1", "::", "0.0.0.0"])
def test_the_api_answers_where_it_was_told_to_listen(settings: Settings, host: str) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with serving(settings, host) as (url, _):
        assert asked_by_docker(url, PROXIES).returncode == 0


def has_ipv6() -> bool:
    with suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def asked_by_docker(url: str, env: dict[str, str]) -> "subprocess.CompletedProcess[bytes]":
    """Runs the health check of the API's image, with variables of the container."""
    text = (ROOT / "docker" / "api.Dockerfile").read_text()
    found = re.search(r"HEALTHCHECK .*\\\n\s+CMD (\[.*\])", text)
    assert found is not None
    _, *arguments = json.loads(found[1])
    command = [sys.executable, *(argument.replace("http://127.0.0.1:8000", url) for argument in arguments)]
    return subprocess.run(command, env=os.environ | env, capture_output=True, timeout=30, check=False)


def test_the_health_check_of_the_image_fails_where_nobody_answers() -> None:
    assert asked_by_docker(f"http://127.0.0.1:{free_port()}", {}).returncode != 0


def test_a_host_that_cannot_be_listened_on_is_status_78() -> None:
    command = [sys.executable, "-m", "services.cli", "serve", "--host", "192.0.2.1", "--port", str(free_port())]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 78
    (line,) = result.stderr.splitlines()
    assert "192.0.2.1 is not an address of this machine" in line


def test_no_call_of_tenor_goes_through_a_proxy_of_the_environment() -> None:
    """All that Tenor calls by HTTP itself are its own processes, and receivers whose addresses it has checked."""
    calls = [
        (path, call)
        for package in ("services", "workers", "shared")
        for path in sorted((ROOT / package).rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in HTTP_CALLS
    ]
    assert calls
    honoured = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path, call in calls
        if ("trust_env", False) not in [(word.arg, getattr(word.value, "value", None)) for word in call.keywords]
    ]
    assert honoured == []


HTTP_CALLS = {
    f"{module}.{name}"
    for module in ("httpx", "httpx2", "requests", "urllib.request")
    for name in ("Client", "AsyncClient", "get", "post", "request", "stream", "Session", "urlopen")
}
