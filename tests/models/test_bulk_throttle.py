"""The bulk throttle: bulk turns wait while interactive turns run, up to a limit."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from workers.stages import BulkThrottle


def seconds_waited(throttle: BulkThrottle) -> float:
    started = time.monotonic()
    throttle.pause_bulk()
    return time.monotonic() - started


def test_a_bulk_turn_waits_until_the_last_interactive_turn_ends() -> None:
    throttle = BulkThrottle(max_pause_s=30)
    with ThreadPoolExecutor(1) as pool:
        with throttle.interactive_turn():
            with throttle.interactive_turn():
                bulk = pool.submit(seconds_waited, throttle)
                time.sleep(0.05)
            time.sleep(0.05)
            assert not bulk.done()
        assert 0.05 < bulk.result(10) < 10
    assert seconds_waited(throttle) < 0.05


def test_a_bulk_turn_waits_no_longer_than_the_limit_while_interactive_turns_never_end() -> None:
    with (throttle := BulkThrottle(max_pause_s=0.1)).interactive_turn():
        assert 0.05 < seconds_waited(throttle) < 5
    with (throttle := BulkThrottle(max_pause_s=0)).interactive_turn():
        assert seconds_waited(throttle) < 0.05


def test_a_failed_interactive_turn_lets_bulk_turns_go_on() -> None:
    throttle = BulkThrottle(max_pause_s=30)
    with pytest.raises(ValueError, match="poison"), throttle.interactive_turn():
        raise ValueError("poison")
    assert seconds_waited(throttle) < 0.05
