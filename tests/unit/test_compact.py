"""The shipped bundle's own numbers, which must not move unless the bundle does."""

from pathlib import Path

import pytest

from shared.audio import decode
from shared.domain.emotion import EmotionScores
from shared.modeling.loading import SHIPPED
from shared.modeling.pipeline import Pipeline
from tests.unit.tiny import Heard, pipeline

ENGLISH = Path(__file__).parents[1] / "assets" / "english.ogg"


@pytest.fixture(scope="module")
def compact() -> Pipeline:
    return pipeline(SHIPPED / "compact", Heard())


def numbers(scores: EmotionScores | None) -> list[float]:
    """The seven categories in their order, and the valence."""
    assert scores is not None
    return [*scores.categories.values(), scores.dimensions["valence"]]


def test_a_text_reads_as_it_always_did(compact: Pipeline) -> None:
    reading = compact.analyze(samples=None, text="I am so happy, this is wonderful!").reading
    golden = [0.0058, 0.0024, 0.0028, 0.9368, 0.0119, 0.0081, 0.0323, 0.9654]
    assert numbers(reading.scores) == pytest.approx(golden, abs=2e-3)


def test_a_voice_reads_as_it_always_did(compact: Pipeline) -> None:
    # The words are in a script that the text encoder does not know.
    reading = compact.analyze(samples=decode(ENGLISH), text="我很高兴").reading
    golden = [0.3245, 0.0169, 0.0217, 0.0513, 0.4836, 0.0867, 0.0152, -0.6118]
    assert reading.text_only is None
    assert numbers(reading.scores) == pytest.approx(golden, abs=5e-3)


def test_happy_words_in_a_flat_voice_are_incongruent(compact: Pipeline) -> None:
    words = "I am so happy to see you again after all these years."
    reading = compact.analyze(samples=decode(ENGLISH), text=words).reading
    golden = [0.1347, 0.0113, 0.0120, 0.3310, 0.4343, 0.0628, 0.0138, 0.2312]
    assert numbers(reading.scores) == pytest.approx(golden, abs=5e-3)
    assert reading.incongruence == pytest.approx(0.798, abs=5e-3)


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
        ("J'ai peur", "fear"),
        ("Мне страшно", "fear"),
        ("میں بہت خوش ہوں", "joy"),
        ("मैं बहुत खुश हूँ", "joy"),
    ],
)
def test_plain_words_are_read_plainly(compact: Pipeline, text: str, emotion: str) -> None:
    scores = compact.analyze(samples=None, text=text).reading.scores
    assert scores is not None
    assert scores.top == emotion
