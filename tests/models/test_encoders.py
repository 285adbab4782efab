"""The encoders' promises: padding changes nothing, and what they do not know they say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.modeling.speech_encoders import SpeechEncoder
from shared.modeling.text_encoders import TextEncoder, TurnTokenizer
from tests import tiny_models


@pytest.fixture(scope="module")
def text_encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(tiny_models.TEXT, tiny_models.tokenizer()).eval()


@pytest.fixture(scope="module")
def speech_encoder() -> SpeechEncoder:
    torch.manual_seed(0)
    return SpeechEncoder(tiny_models.SPEECH).eval()


def noise(seconds: float) -> Samples:
    rng = np.random.default_rng(int(seconds * 1000))
    return (rng.standard_normal(int(seconds * SAMPLE_RATE)) * 0.1).astype(np.float32)


@torch.inference_mode()
def test_encoding_texts_in_a_batch_equals_encoding_each_alone(text_encoder: TextEncoder) -> None:
    texts = ["I am happy", "no", "what a long and weary way it was"]
    together = text_encoder(texts)
    for i, text in enumerate(texts):
        alone = text_encoder([text])
        size = alone.features.shape[1]
        torch.testing.assert_close(together.features[i, :size], alone.features[0], atol=1e-4, rtol=1e-4)
        assert together.mask[i].sum() == size
        assert together.features[i, size:].abs().sum() == 0


@torch.inference_mode()
def test_a_text_is_encoded_with_the_turns_before_it(text_encoder: TextEncoder) -> None:
    alone, no_context = text_encoder(["so what"]), text_encoder(["so what"], [[]])
    torch.testing.assert_close(no_context.features, alone.features)
    after = text_encoder(["so what", "so what"], [["it broke"], ["he is here", "it broke"]])
    assert after.mask.sum(dim=1).tolist() == [alone.mask.sum()] * 2
    assert not torch.allclose(after.features[0], alone.features[0], atol=1e-3)
    assert not torch.allclose(after.features[0], after.features[1], atol=1e-3)


@given(before=st.lists(st.text("abc ", max_size=30), max_size=4), text=st.text("abc", min_size=1, max_size=80))
def test_context_that_does_not_fit_is_cut_from_the_oldest_turn(before: list[str], text: str) -> None:
    turns = TurnTokenizer(tiny_models.tokenizer(), 0, 2, 3, 1, "query: ", 40)
    alone, read = turns.tokenize(text), turns.tokenize(text, before)
    assert [read.ids[i] for i in read.own] == alone.ids
    assert len(read.ids) <= 40
    everything = replace(turns, max_tokens=1000).tokenize(text, before)
    whole = len(everything.ids) - len(everything.own)
    assert len(read.ids) - len(read.own) == min(whole, 40 - len(alone.ids))
    context = [id_ for i, id_ in enumerate(read.ids) if i not in read.own]
    assert context == [id_ for i, id_ in enumerate(everything.ids) if i not in everything.own][whole - len(context) :]


@torch.inference_mode()
def test_encoding_clips_in_a_batch_equals_encoding_each_alone(speech_encoder: SpeechEncoder) -> None:
    clips = [noise(seconds) for seconds in (1.3, 0.013, 0.5, 4.7)]
    together = speech_encoder(clips)
    for i, clip in enumerate(clips):
        alone = speech_encoder([clip])
        size = alone.features.shape[1]
        torch.testing.assert_close(together.features[i, :size], alone.features[0], atol=1e-4, rtol=1e-4)
        assert together.mask[i].sum() == size


@torch.inference_mode()
def test_a_clip_longer_than_the_positions_is_encoded_to_its_end(speech_encoder: SpeechEncoder) -> None:
    # The tiny encoder's positions last two seconds; a token lasts a tenth.
    tokens = speech_encoder([noise(5.0)])
    assert tokens.mask.sum() == 50
    changed = noise(5.0)
    changed[-SAMPLE_RATE // 2 :] = 0
    assert not torch.allclose(speech_encoder([changed]).features[0, -3:], tokens.features[0, -3:])


def test_words_that_the_vocabulary_lacks_are_left_out(text_encoder: TextEncoder) -> None:
    read = text_encoder.turn_tokenizer.read("I am very happy, привет мир my friend")
    assert (read.text, read.letters, read.unknown, read.unread) == ("I am very happy, my friend", 29, 9, 9)
    alone = text_encoder.turn_tokenizer.read("приветмир")
    assert (alone.text, alone.unread) == ("приветмир", 0)


def test_the_windows_of_a_long_text_cover_it_and_end_with_sentences(text_encoder: TextEncoder) -> None:
    sentence = "it broke again today."
    text = " ".join([sentence] * 40)
    tokenizer = text_encoder.turn_tokenizer
    windows = tokenizer.windows(tokenizer.read(text))
    assert " ".join(windows) == text
    assert len(windows) > 1
    assert all(window.endswith(".") for window in windows)


@pytest.mark.parametrize("text", ["x" * 500, "aword " * 100, "a" * 30 + " " + "b" * 300, "I am happy"])
def test_the_windows_of_any_text_fit_the_encoder(text_encoder: TextEncoder, text: str) -> None:
    tokenizer = text_encoder.turn_tokenizer
    windows = tokenizer.windows(tokenizer.read(text))
    assert "".join(windows).replace(" ", "") == text.replace(" ", "")
    uncut = replace(tokenizer, max_tokens=1000)
    assert max(len(uncut.tokenize(window).ids) for window in windows) <= tiny_models.TEXT.max_tokens


@torch.inference_mode()
def test_a_long_text_is_cut_not_refused(text_encoder: TextEncoder) -> None:
    assert text_encoder(["very " * 1000]).features.shape[1] == tiny_models.TEXT.max_tokens


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("I am happy", True),
        ("I am happy привет", True),
        ("I am привет привет", False),
        ("а very good friend", True),  # noqa: RUF001 - one Cyrillic letter among many Latin ones
        ("我很高兴", False),
        ("", False),
        ("...!", False),
        ("   ", False),
    ],
)
def test_the_text_encoder_reports_texts_that_it_cannot_tokenize(
    text_encoder: TextEncoder, text: str, known: bool
) -> None:
    assert text_encoder.can_encode(text) is known
