"""The shipped bundle's own numbers, which must not move unless the bundle does."""

from pathlib import Path

import pytest

from shared.domain.emotion import EmotionScores
from shared.modeling.loading import SHIPPED
from shared.modeling.pipeline import Pipeline
from tests.unit.tiny import Heard, pipeline

ASSETS = Path(__file__).parents[1] / "assets"


@pytest.fixture(scope="module")
def compact() -> Pipeline:
    return pipeline(SHIPPED / "compact", Heard())


def close(scores: EmotionScores | None, expected: list[float], valence: float) -> bool:
    assert scores is not None
    found = [*scores.categories.values(), scores.dimensions["valence"]]
    return found == pytest.approx([*expected, valence], abs=2e-3)


GOLDEN_TEXT = {}


@pytest.mark.parametrize(
    ("text", "emotion"),
    [
        ("I am so happy, this is wonderful!", "joy"),
        ("Leave me alone, I hate you!", "anger"),
        ("I miss her so much, I cannot stop crying.", "sadness"),
        ("There is someone in the house, I am terrified.", "fear"),
        ("Wow, I did not expect that at all!", "surprise"),
        ("That is disgusting, it makes me sick.", "disgust"),
        ("The meeting is on Tuesday at three.", "neutral"),
        ("Ich bin so glücklich, das ist wunderbar!", "joy"),
        ("Я тебя ненавижу, оставь меня в покое!", "anger"),
        ("میں بہت خوش ہوں", "joy"),
    ],
)
def test_plain_words_are_read_plainly(compact: Pipeline, text: str, emotion: str) -> None:
    scores = compact.analyze(samples=None, text=text).reading.scores
    assert scores is not None
    assert scores.top == emotion
