"""How the names of webhooks' hosts are looked up."""

import asyncio
import threading

import pytest

from shared.errors import ResolverBusy, Unavailable
from workers import webhook_client
from workers.webhook_client import Resolver


def test_a_name_that_finds_no_free_thread_is_told_apart_from_one_that_does_not_resolve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = threading.Event()

    def look_up(host: str, _: int) -> list[str]:
        if host.startswith("hangs"):
            answered.wait(30)
        if host == "unknown":
            raise OSError("no such name")
        return ["192.0.2.1"]

    async def resolve_many() -> None:
        resolver = Resolver()
        hanging = [asyncio.create_task(resolver.resolve(f"hangs-{number}", 443)) for number in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ResolverBusy, match="2 other look-ups hang"):
            await resolver.resolve("example", 443)
        answered.set()
        assert await asyncio.gather(*hanging) == [["192.0.2.1"]] * 2
        with pytest.raises(Unavailable, match="could not be resolved") as unknown:
            await resolver.resolve("unknown", 443)
        assert not isinstance(unknown.value, ResolverBusy)
        resolver.close()

    monkeypatch.setattr(webhook_client, "_RESOLVER_THREADS", 2)
    monkeypatch.setattr(webhook_client, "_look_up", look_up)
    asyncio.run(resolve_many())
