"""The shipped bundle's own numbers, which must not move unless the bundle does."""

from pathlib import Path

import pytest

from shared.audio.decoder import decode
from shared.domain.emotion import EmotionScores
from shared.modeling.loading import SHIPPED_BUNDLES
from shared.modeling.pipeline import Pipeline
from tests.tiny_models import StubTranscriber, pipeline

ENGLISH = Path(__file__).parents[1] / "assets" / "english.ogg"


@pytest.fixture(scope="module")
def compact() -> Pipeline:
    return pipeline(SHIPPED_BUNDLES / "compact", StubTranscriber())


def numbers(scores: EmotionScores | None) -> list[float]:
    """The seven categories in their order, and the valence."""
    assert scores is not None
    return [*scores.categories.values(), scores.dimensions["valence"]]


def test_the_compact_bundle_predicts_the_stored_scores_of_a_text(compact: Pipeline) -> None:
    prediction = compact.analyze(samples=None, text="I am so happy, this is wonderful!").prediction
    golden = [0.0041, 0.0024, 0.0018, 0.9630, 0.0081, 0.0036, 0.0169, 0.9861]
    assert numbers(prediction.scores) == pytest.approx(golden, abs=2e-3)


def test_the_compact_bundle_predicts_the_stored_scores_of_a_clip(compact: Pipeline) -> None:
    # The words are in a script that the text encoder does not know.
    prediction = compact.analyze(samples=decode(ENGLISH).samples, text="我很高兴").prediction
    golden = [0.4940, 0.0050, 0.0242, 0.0327, 0.4137, 0.0277, 0.0027, -0.4717]
    assert prediction.text_only is None
    assert numbers(prediction.scores) == pytest.approx(golden, abs=5e-3)


def test_joyful_text_in_flat_audio_is_incongruent(compact: Pipeline) -> None:
    words = "I am so happy to see you again after all these years."
    prediction = compact.analyze(samples=decode(ENGLISH).samples, text=words).prediction
    golden = [0.4130, 0.0015, 0.0083, 0.1666, 0.3943, 0.0152, 0.0011, 0.4461]
    assert numbers(prediction.scores) == pytest.approx(golden, abs=5e-3)
    assert prediction.incongruence == pytest.approx(0.889, abs=5e-3)


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
def test_clear_texts_get_their_obvious_emotion(compact: Pipeline, text: str, emotion: str) -> None:
    scores = compact.analyze(samples=None, text=text).prediction.scores
    assert scores is not None
    assert scores.top == emotion


FURIOUS = "I am absolutely furious, you thieves, give me my money back!"
PLAIN = (
    "The order number is on the first page of the letter. Your parcel left the warehouse on Monday. The office is open "
    "from nine to five. The invoice lists three items and the tax. A copy of the form is attached to this message. "
)


def top(compact: Pipeline, text: str) -> str:
    scores = compact.analyze(samples=None, text=text).prediction.scores
    assert scores is not None
    return scores.top


def test_a_furious_last_sentence_of_a_long_text_is_read(compact: Pipeline) -> None:
    filler = (PLAIN * 50)[:9900]
    assert top(compact, filler) == "neutral"
    assert top(compact, f"{filler} {FURIOUS}") == "anger"


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("Hey man , I am so happy , this is wonderful !", "Hey man, I am so happy, this is wonderful!"),
        ("You f**king idiot, this is sh1t!", "You fucking idiot, this is shit!"),
        ("<p>Leave me <b>alone</b>, I hate you!</p>", "Leave me alone, I hate you!"),
        ("I\u00ad am so hap\u00adpy, don\u2019t stop", "I am so happy, don't stop"),
        ("See you at http://hate.example/i-hate-you at nine.", "See you at at nine."),
    ],
)
def test_oddly_written_texts_are_read_as_the_plain_ones(compact: Pipeline, written: str, plain: str) -> None:
    one, other = (compact.analyze(samples=None, text=text).prediction for text in (written, plain))
    assert one.scores == other.scores


def test_an_address_alone_expresses_no_emotion(compact: Pipeline) -> None:
    assert top(compact, "angry.customer@hate.example") == "neutral"


def test_no_turn_outweighs_the_next_one(compact: Pipeline) -> None:
    text = "I am so happy, this is wonderful!"
    after = compact.analyze(samples=None, text=text, context=["This is a disaster, I am furious."]).prediction
    assert after == compact.analyze(samples=None, text=text).prediction
    assert after.context_turns == 0
