"""`python -m benchmarks.load_generator`: sends requests from many connections and measures their latencies.

It reads a `Load` from stdin and writes a `Result` to stdout, both as JSON. It is a process of its own, so that its CPU
time does not slow down the measured server or the measuring process.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2 as httpx
from pydantic import BaseModel


class Load(BaseModel):
    """The requests to send.

    Attributes:
        urls: of POST requests; each URL has a connection of its own.
        headers: of every request.
        body: of every request, as JSON.
        seconds: for how long requests are sent.
        rate: requests per second, sent on schedule whether or not the earlier ones are answered; None sends the next
            request of a URL as soon as the one before is answered.
    """

    urls: list[str]
    headers: dict[str, str]
    body: dict[str, Any]
    seconds: float
    rate: float | None = None


class Result(BaseModel):
    """Answers per second, and the seconds from when each request was due until its answer."""

    rate: float
    latencies: list[float]


async def generate(load: Load) -> Result:
    """Send all requests and wait for their answers.

    Raises:
        httpx.HTTPError: a request failed.
    """
    clients = [httpx.AsyncClient(headers=load.headers, timeout=60, trust_env=False) for _ in load.urls]
    latencies: list[float] = []

    async def post(number: int, due: float) -> None:
        index = number % len(clients)
        (await clients[index].post(load.urls[index], json=load.body)).raise_for_status()
        latencies.append(time.perf_counter() - due)

    async def post_until(number: int, end: float) -> None:
        while (now := time.perf_counter()) < end:
            await post(number, now)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        if load.rate is None:
            for number in range(len(clients)):
                tasks.create_task(post_until(number, started + load.seconds))
        else:
            async for number, due in _schedule(started, load.seconds, load.rate):
                tasks.create_task(post(number, due))
    rate = len(latencies) / (time.perf_counter() - started)
    for client in clients:
        await client.aclose()
    return Result(rate=rate, latencies=latencies)


async def _schedule(start: float, seconds: float, rate: float) -> AsyncIterator[tuple[int, float]]:
    """Yield the number of each request and the time when it is due, as soon as it is due."""
    for number in range(max(1, int(seconds * rate))):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        yield number, due


if __name__ == "__main__":
    result = asyncio.run(generate(Load.model_validate_json(sys.stdin.read())))
    sys.stdout.write(result.model_dump_json())
