"""Fixtures of a test process: small corpora, small pretrained models, and their cached features."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors
from tokenizers.models import Unigram
from torch import Tensor
from transformers import BertConfig, BertModel

from shared.modeling.speech_encoders import SpeechEncoder
from shared.modeling.text_encoders import TextEncoder
from tests.tiny_models import SPEECH, TEXT, tokenizer
from tests.training.corpus_samples import write_data
from training.recipes.cache_features import cache_features

PIECES = ("▁the", "▁day", "ing", "▁lovely", "▁дом", "ный", "▁سلام", "▁घर", "▁中国", "▁what", "▁train")
CACHED = ("ravdess", "urdu_latif", "tess", "meld", "goemotions", "xed")
"""The corpora of the bundle `compact`, and one to test on: no test reads features of others."""

LETTERS = "abcdefghijklmnopqrstuvwxyzабвгдежзиклмнопрстуыйαβγسلامघरकत0123456789:!?中国人"  # noqa: RUF001


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one thread: the tests run in parallel, and models this small only wait for each other's threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `build_encoders` writes it, with random weights."""
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    tokenizer().save(str(folder / "tokenizer.json"))
    _save(TextEncoder(TEXT, tokenizer()).state_dict(), folder / "text_encoder.safetensors")
    _save(SpeechEncoder(SPEECH).state_dict(), folder / "speech_encoder.safetensors")
    options = {
        "text_encoder": TEXT.model_dump(),
        "speech_encoder": SPEECH.model_dump(),
        "sources": {"text_encoder": "random", "speech_encoder": "random"},
    }
    (folder / "encoders.json").write_text(json.dumps(options))
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory, encoders: Path, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    cache_features(encoders, data, folder, CACHED)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two pretrained models as on the hub, but tiny."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    text = folder / "multilingual-e5-small"
    text.mkdir()
    pieces = xlmr_tokenizer()
    pieces.save(str(text / "tokenizer.json"))
    bert = BertModel(
        BertConfig(
            # The matrix on the hub has more rows than the vocabulary has pieces.
            vocab_size=pieces.get_vocab_size() + 5,
            hidden_size=TEXT.width,
            num_hidden_layers=TEXT.layers,
            num_attention_heads=TEXT.heads,
            intermediate_size=TEXT.hidden,
            max_position_embeddings=TEXT.positions,
            layer_norm_eps=1e-12,
            pad_token_id=1,
        )
    )
    positions = {"embeddings.position_ids": torch.arange(TEXT.positions)[None]}
    _save(bert.state_dict() | positions, text / "model.safetensors")

    whisper = SpeechEncoder(SPEECH.model_copy(update={"layers": SPEECH.layers + 1})).state_dict()
    whisper |= {"layer_norm.weight": torch.ones(SPEECH.width), "layer_norm.bias": torch.zeros(SPEECH.width)}
    speech = folder / "whisper-base"
    speech.mkdir()
    state = {f"model.encoder.{name}": tensor for name, tensor in whisper.items()}
    _save(state | {"model.decoder.layers.0.fc1.weight": torch.zeros(2, 2)}, speech / "model.safetensors")
    return folder


def xlmr_tokenizer() -> Tokenizer:
    """A tokenizer with special pieces first, then the ordinary ones by score, and the mask last, as in XLM-R."""
    ordinary = [",", ".", "▁", *PIECES, *LETTERS]
    scored = [(piece, -3.0 - 0.1 * i) for i, piece in enumerate(ordinary)]
    special = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    built = Tokenizer(Unigram([*special, *scored, ("<mask>", 0.0)], unk_id=3))
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    built.add_special_tokens([AddedToken(piece, special=True) for piece in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")])
    return built


def _save(state: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
