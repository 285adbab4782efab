"""What is read of a turn, and what is not."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.audio.decoder import Samples
from shared.domain.emotion import EKMAN7, EmotionScores, Modality
from shared.domain.prediction import AbstentionReason, Prediction
from shared.domain.transcript import Segment, Transcript, TranscriptSource, Word
from shared.domain.warning import WarningCode
from shared.modeling import predictor
from shared.modeling.pipeline import Item, Result, Stage
from shared.modeling.predictor import EncodedTurn, TextInput, incongruence
from shared.modeling.transcriber import Clip
from tests.audio_clips import silence, tone
from tests.tiny_models import FUSION, StubTranscriber, pipeline, write_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


def test_analysing_a_text_loads_no_audio_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "load_speech_encoder", lambda *_: pytest.fail("the speech encoder was loaded"))
    analysis = pipeline(folder).analyze(samples=None, text="I am happy")
    assert analysis.prediction.modalities_used == (Modality.text,)
    assert analysis.prediction.scores == analysis.prediction.text_only
    assert analysis.prediction.audio_only is None
    assert analysis.prediction.incongruence is None
    assert analysis.transcript == Transcript.provided("I am happy")


def test_audio_is_analysed_as_transcript_and_as_audio(folder: Path) -> None:
    analysis = pipeline(folder, StubTranscriber()).analyze(samples=tone(), text=None)
    prediction = analysis.prediction
    assert prediction.modalities_used == (Modality.text, Modality.audio)
    assert prediction.text_only is not None
    assert prediction.audio_only is not None
    assert prediction.incongruence == pytest.approx(incongruence(prediction.text_only, prediction.audio_only))
    assert analysis.transcript is not None
    assert analysis.transcript.source is TranscriptSource.asr


def test_the_scores_of_one_modality_do_not_depend_on_the_other(folder: Path) -> None:
    subject = pipeline(folder, StubTranscriber())
    both = subject.analyze(samples=tone(), text="I am happy").prediction
    words = subject.analyze(samples=None, text="I am happy").prediction
    assert both.text_only is not None
    assert words.scores is not None
    assert both.text_only.categories == pytest.approx(words.scores.categories, abs=1e-5)


def test_a_provided_text_replaces_the_transcription(folder: Path) -> None:
    transcript = pipeline(folder, StubTranscriber("something else")).analyze(samples=tone(), text="I am sad").transcript
    assert transcript == Transcript.provided("I am sad")


def test_audio_is_compared_with_the_baseline_of_earlier_turns(folder: Path) -> None:
    read = pipeline(folder, StubTranscriber()).analyze
    first, other = read(samples=tone(), text="so what"), read(samples=tone() ** 3, text="so what")
    assert first.prediction.baseline_turns == 0
    assert first.audio_summary is not None
    assert other.audio_summary is not None
    earlier = [other.audio_summary, first.audio_summary.flatten()]  # as a database gives it back
    again = read(samples=tone(), text="so what", earlier=earlier)
    assert again.prediction.baseline_turns == 2
    assert again.prediction.scores != first.prediction.scores
    assert again.prediction.text_only == first.prediction.text_only
    swapped = read(samples=tone(), text="so what", earlier=earlier[::-1])
    assert swapped.prediction == again.prediction


def test_a_text_has_no_baseline(folder: Path) -> None:
    summary = pipeline(folder, StubTranscriber()).analyze(samples=tone(), text="so what").audio_summary
    assert summary is not None
    analysis = pipeline(folder).analyze(samples=None, text="so what", earlier=[summary])
    assert (analysis.prediction.baseline_turns, analysis.audio_summary) == (0, None)


def test_a_bundle_without_baselines_keeps_none(tmp_path: Path) -> None:
    fusion = FUSION.model_copy(update={"relative": False})
    analysis = pipeline(write_bundle(tmp_path, fusion=fusion), StubTranscriber()).analyze(samples=tone(), text=None)
    assert (analysis.prediction.baseline_turns, analysis.audio_summary) == (0, None)


def test_text_is_encoded_with_the_turns_before(folder: Path) -> None:
    read = pipeline(folder).analyze
    alone, after = read(samples=None, text="so what"), read(samples=None, text="so what", context=["it broke"])
    assert alone.prediction.scores != after.prediction.scores
    assert (alone.prediction.context_turns, after.prediction.context_turns) == (0, 1)
    # Two turns are read at most, and none in a script that is not known.
    longer = read(samples=None, text="so what", context=["hello", "我很高兴", "it broke"])
    assert longer.prediction == after.prediction


def test_audio_without_speech_abstains(folder: Path) -> None:
    analysis = pipeline(folder, StubTranscriber(speaks=False)).analyze(samples=tone(), text=None)
    assert analysis.transcript is not None
    assert analysis.transcript.segments == ()
    assert analysis.prediction.scores is None
    assert analysis.prediction.emotion is None
    assert analysis.prediction.abstained
    assert analysis.prediction.reason is AbstentionReason.no_speech
    assert analysis.prediction.modalities_used == ()
    (warning,) = analysis.prediction.warnings
    assert warning.code is WarningCode.no_speech_found
    assert "-9 dBFS" in warning.message


def test_silence_has_a_level_and_no_warning(folder: Path) -> None:
    prediction = pipeline(folder, StubTranscriber(speaks=False)).analyze(samples=silence(1), text=None).prediction
    assert (prediction.level_dbfs, prediction.warnings) == (-120, ())


def test_the_level_is_that_of_the_audio_as_it_was_sent(folder: Path) -> None:
    quiet = (tone() / 1000).astype(np.float32)
    prediction = pipeline(folder, StubTranscriber()).analyze(samples=quiet, text=None).prediction
    assert (prediction.level_dbfs, prediction.warnings) == (-69, ())
    assert pipeline(folder).analyze(samples=None, text="I am happy").prediction.level_dbfs is None


def test_quiet_audio_is_analysed_like_the_same_audio_at_another_level(folder: Path) -> None:
    subject = pipeline(folder, StubTranscriber())
    tones = [(tone() / scale).astype(np.float32) for scale in (500, 2000)]
    first, second = (subject.analyze(samples=samples, text=None).prediction.scores for samples in tones)
    assert first is not None
    assert second is not None
    assert first.categories == pytest.approx(second.categories, abs=1e-4)


@pytest.mark.parametrize("words", ["我很高兴", "...", ""])
def test_unsupported_text_leaves_the_audio_scores(folder: Path, words: str) -> None:
    prediction = pipeline(folder, StubTranscriber(words)).analyze(samples=tone(), text=None).prediction
    assert prediction.modalities_used == (Modality.audio,)
    assert prediction.scores == prediction.audio_only
    assert prediction.text_only is None


def test_a_text_in_an_unsupported_script_abstains(folder: Path) -> None:
    prediction = pipeline(folder).analyze(samples=None, text="我很高兴").prediction
    assert prediction.scores is None
    assert prediction.abstained
    assert prediction.reason is AbstentionReason.unread_script


def test_a_text_without_letters_abstains(folder: Path) -> None:
    prediction = pipeline(folder).analyze(samples=None, text="?!").prediction
    assert (prediction.scores, prediction.reason) == (None, AbstentionReason.no_letters)


def test_a_foreign_phrase_does_not_hide_the_rest(folder: Path) -> None:
    prediction = pipeline(folder).analyze(samples=None, text="I am very happy, 我很高兴 my friend").prediction
    assert (
        prediction.scores == pipeline(folder).analyze(samples=None, text="I am very happy, my friend").prediction.scores
    )
    assert [warning.code for warning in prediction.warnings] == [WarningCode.text_unread]
    assert prediction.warnings[0].message.startswith("4 letters")


def test_a_text_of_an_unknown_script_beside_audio_is_reported(folder: Path) -> None:
    prediction = pipeline(folder, StubTranscriber()).analyze(samples=tone(), text="我很高兴").prediction
    assert WarningCode.text_unread in [warning.code for warning in prediction.warnings]


@pytest.mark.parametrize("samples", [None, tone()])
def test_every_part_of_a_long_text_counts(folder: Path, samples: Samples | None) -> None:
    read = pipeline(folder, StubTranscriber()).analyze
    filler = "it broke again today. " * 100
    plain, changed = (read(samples=samples, text=filler + last).prediction for last in ("so what.", "I am very happy!"))
    assert plain.scores != changed.scores
    assert plain.scores is not None
    assert sum(plain.scores.categories.values()) == pytest.approx(1)
    assert (plain.audio_only is None) == (samples is None)


def heard(text: str, word: float, language: float | None = 0.9) -> Transcript:
    words = tuple(Word(start=0.0, end=1.0, text=part, probability=word) for part in text.split())
    segment = Segment(start=0.0, end=1.0, text=text, words=words)
    return Transcript(language="en", language_probability=language, segments=(segment,), source=TranscriptSource.asr)


@pytest.mark.parametrize(
    ("word", "language", "weight"),
    [(0.9, 0.9, 1), (0.5, None, 1), (0.75, 0.5, 0.5), (0.5, 0.75, 0.5), (0.5, 0.5, 0), (0.9, 0.1, 0), (0.0, 0.9, 0)],
)
def test_a_transcript_is_trusted_by_its_words_and_its_language(word: float, language: float, weight: float) -> None:
    assert heard("thank you", word, language).text_weight == pytest.approx(weight)


def test_a_provided_text_is_trusted(folder: Path) -> None:
    assert Transcript.provided("thank you").text_weight == 1


class Doubtful(StubTranscriber):
    """Hears a text with this probability of each word."""

    def __init__(self, text: str, word: float) -> None:
        super().__init__(text)
        self._heard = heard(text, word)

    def transcribe(self, clips: Sequence[Clip]) -> list[Transcript]:
        return [self._heard for _ in clips]


def test_a_doubtful_transcript_counts_less(folder: Path) -> None:
    def read(word: float) -> Prediction:
        return pipeline(folder, Doubtful("I am happy", word)).analyze(samples=tone(), text=None).prediction

    sure, doubtful, worthless = read(0.9), read(0.375 / 0.9), read(0.1)
    assert sure.scores is not None
    assert sure.audio_only is not None
    assert doubtful.scores is not None
    halves = {name: (p + sure.audio_only.categories[name]) / 2 for name, p in sure.scores.categories.items()}
    assert doubtful.scores.categories == pytest.approx(halves, abs=1e-6)
    assert doubtful.text_only == sure.text_only
    assert worthless.scores == worthless.audio_only
    assert worthless.scores is not None
    assert worthless.scores.categories == pytest.approx(sure.audio_only.categories, abs=1e-5)
    assert worthless.modalities_used == (Modality.audio,)
    codes = [[warning.code for warning in prediction.warnings] for prediction in (sure, doubtful, worthless)]
    assert codes == [[], [WarningCode.transcript_doubtful], [WarningCode.transcript_doubtful]]


def test_a_doubtful_transcript_without_audio_to_read_abstains(folder: Path) -> None:
    transcriber = Doubtful("I am happy", 0.1)
    transcriber._speaks = False
    prediction = pipeline(folder, transcriber).analyze(samples=tone(), text=None).prediction
    assert (prediction.scores, prediction.reason) == (None, AbstentionReason.too_uncertain)


TEXT_INPUTS = [
    TextInput("so what"),
    TextInput("I am very happy to see you again", ["it broke", "hello"]),
    TextInput("no", ["yes"]),
]
CLIPS = [tone(seconds=seconds, hertz=hertz) for seconds, hertz in ((1.0, 200), (3.1, 250), (0.4, 300), (1.0, 180))]


def test_encoding_a_batch_equals_encoding_each_item(folder: Path) -> None:
    subject = pipeline(folder)
    together = [*(text.windows[0] for text in subject.text.run(TEXT_INPUTS)), *subject.speech.run(CLIPS)]
    alone = [subject.text.run([text_input])[0].windows[0] for text_input in TEXT_INPUTS] + [
        subject.speech.run([clip])[0] for clip in CLIPS
    ]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("relative", [True, False])
def test_fusing_a_batch_equals_fusing_each_turn(tmp_path: Path, relative: bool) -> None:
    subject = pipeline(write_bundle(tmp_path, fusion=FUSION.model_copy(update={"relative": relative})))
    text, audio = subject.text.run(TEXT_INPUTS), subject.speech.run(CLIPS)
    earlier = [np.random.default_rng(seed).normal(size=FUSION.summary_shape).astype(np.float16) for seed in range(3)]
    turns = [
        EncodedTurn(text[0], audio[0], earlier),
        EncodedTurn(None, audio[1], earlier[:1]),
        EncodedTurn(text[1], None),
        EncodedTurn(text[2], audio[2]),
        EncodedTurn(None, audio[3]),
    ]
    alone = [subject.fuse.run([turn])[0] for turn in turns]
    for (one, summary), (other, its) in zip(subject.fuse.run(turns), alone, strict=True):
        assert (one.modalities_used, one.baseline_turns) == (other.modalities_used, other.baseline_turns)
        for read, also in ((one.scores, other.scores), (one.text_only, other.text_only)):
            assert (read is None) == (also is None)
            if read is not None and also is not None:
                assert read.categories == pytest.approx(also.categories, abs=1e-4)
                assert read.dimensions == pytest.approx(also.dimensions, abs=1e-4)
        assert (summary is None) == (its is None)
        if summary is not None and its is not None:
            np.testing.assert_allclose(summary, its, atol=2e-3)  # half precision


def test_a_turn_gets_the_same_prediction_with_and_without_batching(folder: Path) -> None:
    subject, passed = pipeline(folder, StubTranscriber()), list[str]()

    def submit(stage: Stage[Item, Result], item: Item, /) -> Callable[[], Result]:
        passed.append(stage.name)
        return lambda: stage.run([item, item])[1]

    through = subject.analyze(samples=tone(), text=None, submit=submit)
    assert passed == ["vad", "speech", "transcribe", "text", "fuse"]
    directly = subject.analyze(samples=tone(), text=None)
    assert through.transcript == directly.transcript
    assert through.prediction.confidence == pytest.approx(directly.prediction.confidence, abs=1e-4)


def test_a_confidence_below_the_threshold_names_no_emotion_but_keeps_the_scores(tmp_path: Path) -> None:
    prediction = (
        pipeline(write_bundle(tmp_path, abstain_below=0.99)).analyze(samples=None, text="I am happy").prediction
    )
    assert prediction.abstained
    assert prediction.reason is AbstentionReason.too_uncertain
    assert prediction.emotion is None
    assert prediction.scores is not None
    assert prediction.confidence == max(prediction.scores.categories.values())


def scores(weights: np.ndarray) -> EmotionScores:
    shares = weights / weights.sum()
    return EmotionScores(label_space=EKMAN7.name, categories=dict(zip(EKMAN7.categories, shares.tolist(), strict=True)))


distributions = arrays(np.float64, 7, elements=st.floats(1e-6, 1)).map(scores)


@given(distributions, distributions)
def test_incongruence_is_a_symmetric_distance_in_the_unit_interval(p: EmotionScores, q: EmotionScores) -> None:
    assert 0 <= incongruence(p, q) <= 1
    assert incongruence(p, q) == pytest.approx(incongruence(q, p))
    assert incongruence(p, p) == pytest.approx(0, abs=1e-7)


@given(distributions, distributions, distributions)
def test_incongruence_obeys_the_triangle_inequality(p: EmotionScores, q: EmotionScores, r: EmotionScores) -> None:
    assert incongruence(p, r) <= incongruence(p, q) + incongruence(q, r) + 1e-9


def test_emotions_that_share_nothing_are_at_distance_one() -> None:
    joy, anger = (scores(np.eye(7)[EKMAN7.index(name)]) for name in ("joy", "anger"))
    assert incongruence(joy, anger) == pytest.approx(1)
