import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest
import uvicorn
from fastapi import FastAPI
from uvicorn.server import ServerState

from services.api.connections import Connection, Connections, client_network
from shared.settings import ApiSettings, Settings


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_client_is_an_ipv4_address_or_an_ipv6_network(address: str, network: str) -> None:
    assert client_network(address) == network


@pytest.mark.parametrize(("limit", "allowed"), [("-S -n 400", 500), ("-n 400", 80)], ids=["soft", "hard"])
def test_the_connection_limit_follows_the_limit_of_open_files(limit: str, allowed: int) -> None:
    code = "from services.api.connections import allowed_connections; print(allowed_connections(500))"
    command = ["sh", "-c", f'ulimit {limit} && exec "$0" -c "$1"', sys.executable, code]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout == f"{allowed}\n"
    assert ("TENOR_API_MAX_CONNECTIONS is lowered from 500 to 80" in told.stderr) is (allowed == 80)


class Transport(asyncio.Transport):
    """A transport whose buffer has the size that a test gives it."""

    unsent = 0
    is_open = True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return not self.is_open

    def abort(self) -> None:
        self.is_open = False


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize(
    ("unsent", "stays"),
    [(range(9_000, 0, -1_000), True), ([9_000] * 5 + [8_000] * 4, True), ([9_000] * 9, False), ([0, 9_000] * 5, True)],
    ids=["reads", "reads once", "does not read", "reads all"],
)
def test_a_client_that_reads_slowly_stays_and_one_that_does_not_read_is_dropped(
    loop: asyncio.AbstractEventLoop, unsent: list[int], stays: bool
) -> None:
    connections = Connections(Settings(api=ApiSettings(send_timeout_s=5, header_timeout_s=100)), 10)
    connection = Connection(connections, uvicorn.Config(FastAPI(), ws="none"), ServerState(), {}, loop)
    transport = Transport()
    connection.connection_made(transport)
    for number, size in enumerate(unsent):
        transport.unsent = size
        connection.check(loop.time() + number, 1)  # a second later each time
    assert transport.is_open is stays
