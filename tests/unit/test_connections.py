import subprocess
import sys

import pytest

from services.api.connections import client_network


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
def test_as_many_connections_are_allowed_as_files_may_be_opened(limit: str, allowed: int) -> None:
    code = "from services.api.connections import allowed_connections; print(allowed_connections(500))"
    command = ["sh", "-c", f'ulimit {limit} && exec "$0" -c "$1"', sys.executable, code]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout == f"{allowed}\n"
    assert ("TENOR_MAX_CONNECTIONS is lowered from 500 to 80" in told.stderr) is (allowed == 80)
