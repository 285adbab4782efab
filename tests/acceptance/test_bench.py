"""Every benchmark runs with the smallest load and prints its figures."""

import csv
import json
import math
from pathlib import Path

import pytest

from tests.acceptance.conftest import ASSETS
from tests.acceptance.test_command import tenor

CLIP = ASSETS / "english.ogg"
SPOKEN_TEXT = "I am so happy to see you again after all these years."


def measured(*arguments: object) -> dict[str, float]:
    """Run a benchmark and return the medians of its figures, by name."""
    result = tenor("bench", *arguments, "--format", "json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    for figure in figures:
        assert 0 <= figure["median"] <= figure["p95"] <= figure["p99"] <= figure["max"] < math.inf
        assert figure["count"] > 0
    return {figure["name"]: figure["median"] for figure in figures}


def test_the_clips_benchmark_times_in_process_and_as_a_service() -> None:
    assert {"analyze, a clip", "service, an audio turn", "API start"} <= measured("clips", CLIP, "--rounds", 1).keys()


def test_the_plain_chain_is_compared_with_tenor() -> None:
    found = measured("chain", CLIP, "--rounds", 1, "--clients", 2)
    assert found["plain chain, a clip"] == pytest.approx(1 / found["plain chain"])
    assert found["Tenor to plain chain"] == pytest.approx(found["Tenor, 2 clients"] / found["plain chain"])


def test_transcripts_are_compared_in_each_language(tmp_path: Path) -> None:
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        lines = [(CLIP, SPOKEN_TEXT, "en"), (ASSETS / "spanish.ogg", "Adiós.", "es")]
        csv.writer(file).writerows([("path", "text", "language"), *lines])
    found = measured("transcripts", tmp_path / "clips.csv")
    for way in ("Tenor", "Tenor, told the language", "faster-whisper"):
        assert found[f"en: {way}, word error rate"] == 0
        assert found[f"es: {way}, word error rate"] >= 100
    assert found["en: Tenor, faster"] == pytest.approx(found["en: faster-whisper, a clip"] / found["en: Tenor, a clip"])


def test_quiet_clips_are_compared_with_the_clips_as_they_are() -> None:
    assert measured("levels", CLIP, "--peak", -55) == {"word error rate": 0, "same words": 100, "same emotion": 100}


def test_accepts_are_compared_with_a_bare_route() -> None:
    found = measured("accepts", "--connections", 2, "--seconds", 0.5, "--rounds", 1)
    assert found["accepts to inserts"] == pytest.approx(found["accepts"] / found["inserts of the bare route"])
    assert sum("a second" in name for name in found) == 2


def test_interactive_turns_are_timed_alone_and_beside_bulk_turns() -> None:
    assert {"interactive, alone", "interactive, beside bulk"} <= measured("lanes", CLIP, "--rounds", 1).keys()


def test_deliveries_are_measured_beside_a_slow_webhook() -> None:
    found = measured("deliveries", "--events", 50, "--backlog", 20, "--timeout", 60)
    assert found["deliveries"] > 1
    assert found["an event, beside 20 of a slow webhook"] < 30


def test_many_threads_do_more_tasks_than_one() -> None:
    assert measured("dispatch", "--rounds", 1)["dispatch, 32 to 1"] > 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("path,text\na.wav,hello\n", "line 2: language should be there"),
        ("path,text,language\na.wav,hello,en\n", "there is no file"),
        ("path,text,language\nclips.csv,?!,en\n", "holds no word"),
        ("path,text,language\n", "names no clip"),
    ],
)
def test_an_invalid_manifest_is_refused_with_the_reason(tmp_path: Path, content: str, said: str) -> None:
    manifest = tmp_path / "clips.csv"
    manifest.write_text(content)
    result = tenor("bench", "transcripts", manifest)
    assert result.returncode == 1
    assert said in " ".join(result.stderr.split())
