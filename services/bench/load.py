"""`python -m services.bench.load`: many clients of one server, told on stdin and their times on stdout.

A process of its own, so that what it costs is not the measured server's, nor the measuring one's.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2 as httpx
from pydantic import BaseModel


class Load(BaseModel):
    """What to put on a server.

    Attributes:
        places: URLs that take a POST; each has a connection of its own.
        headers: of every request.
        body: likewise, as JSON.
        seconds: how long.
        rate: requests a second, sent at their own pace whether or not those before are answered; None: each place's
            next one as soon as its last one is answered.
    """

    places: list[str]
    headers: dict[str, str]
    body: dict[str, Any]
    seconds: float
    rate: float | None = None


class Result(BaseModel):
    """What the server made of it: answers a second, and each one's seconds from when it was due."""

    rate: float
    latencies: list[float]


async def put_on(load: Load) -> Result:
    """Every request's answer has come when this ends.

    Raises:
        httpx.HTTPError: one was refused.
    """
    clients = [httpx.AsyncClient(headers=load.headers, timeout=60, trust_env=False) for _ in load.places]
    latencies: list[float] = []

    async def post(number: int, due: float) -> None:
        place = number % len(clients)
        (await clients[place].post(load.places[place], json=load.body)).raise_for_status()
        latencies.append(time.perf_counter() - due)

    async def one_after_another(number: int, end: float) -> None:
        while (now := time.perf_counter()) < end:
            await post(number, now)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        if load.rate is None:
            for number in range(len(clients)):
                tasks.create_task(one_after_another(number, started + load.seconds))
        else:
            async for number, due in _paced(started, load.seconds, load.rate):
                tasks.create_task(post(number, due))
    rate = len(latencies) / (time.perf_counter() - started)
    for client in clients:
        await client.aclose()
    return Result(rate=rate, latencies=latencies)


async def _paced(start: float, seconds: float, rate: float) -> AsyncIterator[tuple[int, float]]:
    """A number and when it is due, no sooner than then."""
    for number in range(max(1, int(seconds * rate))):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        yield number, due


if __name__ == "__main__":
    result = asyncio.run(put_on(Load.model_validate_json(sys.stdin.read())))
    sys.stdout.write(result.model_dump_json())
