"""The recipe `build_encoders`: the pruned vocabulary and the reduced encoders give the outputs of the originals."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from shared.modeling.loading import load_encoders
from shared.modeling.quantization import dequantize
from shared.modeling.text_encoders import TextEncoderConfig
from tests.audio_clips import tone
from tests.tiny_models import SPEECH, TEXT
from tests.training.conftest import xlmr_tokenizer
from training.recipes.build_encoders import build_encoders, prune_text_encoder

EMBEDDINGS = "embeddings.word_embeddings.weight"
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
KEPT_LETTERS = "abcdefghijklmnopqrstuvwxyzабвгдежзиклмнопрстуыйαβγسلامघरकत0123456789:!?"  # noqa: RUF001


@pytest.fixture(scope="module")
def pruned(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned")
    prune_text_encoder(models / "multilingual-e5-small", out)
    return out


@pytest.fixture(scope="module")
def tokenizer(pruned: Path) -> Tokenizer:
    return Tokenizer.from_file(str(pruned / "tokenizer.json"))


def test_special_pieces_and_supported_scripts_are_kept_and_other_scripts_are_not(tokenizer: Tokenizer) -> None:
    kept = tokenizer.get_vocab()
    assert {*SPECIAL, *KEPT_LETTERS, "▁", "▁the", "▁дом", "▁घर", "▁سلام"} <= set(kept)
    assert not {"中", "国", "人", "▁中国"} & set(kept)
    assert sorted(kept.values()) == list(range(len(kept)))


def test_ids_are_those_of_the_same_pieces_with_the_same_embeddings(
    tokenizer: Tokenizer, pruned: Path, models: Path
) -> None:
    before = load_file(models / "multilingual-e5-small" / "model.safetensors")[EMBEDDINGS]
    after = dequantize(load_file(pruned / "text_encoder.safetensors"))[f"bert.{EMBEDDINGS}"]
    old = xlmr_tokenizer()
    assert len(after) == tokenizer.get_vocab_size()
    for piece, id_ in tokenizer.get_vocab().items():
        torch.testing.assert_close(after[id_], before[old.token_to_id(piece)], atol=0.01, rtol=0)


def test_texts_in_kept_scripts_have_the_same_pieces_as_before(tokenizer: Tokenizer) -> None:
    text = "what the lovely training, ный дом"
    assert tokenizer.encode(text).tokens == xlmr_tokenizer().encode(text).tokens
    assert tokenizer.encode(text).tokens[0] == "<s>"
    assert tokenizer.encode(text).tokens[-1] == "</s>"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=KEPT_LETTERS + " ,."))
def test_no_text_in_kept_scripts_has_an_unknown_piece(tokenizer: Tokenizer, text: str) -> None:
    encoding = tokenizer.encode(text)
    assert tokenizer.token_to_id("<unk>") not in encoding.ids
    assert all(tokenizer.id_to_token(id_) == token for id_, token in zip(encoding.ids, encoding.tokens, strict=True))


def test_a_script_that_is_not_kept_is_unknown(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_to_id("<unk>") in tokenizer.encode("中国").ids


@torch.inference_mode()
def test_the_built_encoders_give_the_outputs_of_the_pretrained_ones(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The recipe has the shapes of the real models.
    shape = TEXT.model_dump(exclude={"vocabulary", "padding_id"})
    module = "training.recipes.build_encoders"
    monkeypatch.setattr(f"{module}.TextEncoderConfig", partial(TextEncoderConfig, **shape))
    monkeypatch.setattr(f"{module}.SpeechEncoderConfig", lambda: SPEECH)
    build_encoders(models, tmp_path)
    text_encoder, speech_encoder = load_encoders(tmp_path)

    text = "what the lovely day"
    ids = xlmr_tokenizer().encode(TEXT.prefix + text).ids
    expected = _original(models)(torch.tensor([ids])).last_hidden_state
    # Four bits are coarse for random weights as small as these.
    torch.testing.assert_close(text_encoder([text]).features, expected, atol=0.25, rtol=0.1)

    state = load_file(models / "whisper-base" / "model.safetensors")
    for name, tensor in speech_encoder.state_dict().items():
        torch.testing.assert_close(tensor, state[f"model.encoder.{name}"].half().float())
    assert speech_encoder([tone(0.3)]).features.shape == (1, 3, SPEECH.output_layer_count, SPEECH.width)


def _original(models: Path) -> BertModel:
    folder = models / "multilingual-e5-small"
    state = load_file(folder / "model.safetensors")
    del state["embeddings.position_ids"]
    rows = len(state[EMBEDDINGS])
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert rows > len(vocabulary)
    config = BertConfig(
        vocab_size=rows,
        hidden_size=TEXT.width,
        num_hidden_layers=TEXT.layers,
        num_attention_heads=TEXT.heads,
        intermediate_size=TEXT.hidden,
        max_position_embeddings=TEXT.positions,
        pad_token_id=1,
    )
    model = BertModel(config).eval()
    model.load_state_dict(state)
    return model
