"""From pretrained models to a bundle's two encoders: only the layers and the words that are needed, in float16."""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from shared.modeling.encoders import SpeechEncoderConfig, TextEncoderConfig
from training.data.load import load

SCRIPTS = {
    "LATIN": 12_000,
    "CYRILLIC": 4_500,
    "ARABIC": 5_500,
    "GREEK": 1_500,
    "DEVANAGARI": 3_000,
    "BENGALI": 1_500,
    "GURMUKHI": 600,
    "GUJARATI": 800,
    "TAMIL": 1_200,
    "TELUGU": 1_000,
    "KANNADA": 800,
    "MALAYALAM": 800,
    "SINHALA": 400,
    "ORIYA": 300,
}
"""How many of the best-scored pieces of each script are kept, besides those that the corpora use."""


def build_encoders(
    models: Path,
    data: Path,
    out: Path,
    corpora: Sequence[str],
    pieces: int = 38_000,
    text_source: str = "intfloat/multilingual-e5-small",
    speech_source: str = "openai/whisper-base",
) -> None:
    """Write `text_encoder.safetensors`, `tokenizer.json` and `speech_encoder.safetensors`, with their options.

    Args:
        models: holds `multilingual-e5-small` and `whisper-base-encoder` (or `whisper-base`), as on the hub.
        data: holds the corpora, whose words are kept in the vocabulary.
        out: where to write.
        corpora: which corpora.
        pieces: size of the vocabulary.
        text_source: what the manifest says of the text encoder's origin: repo@revision.
        speech_source: the same of the speech encoder.
    """
    out.mkdir(parents=True, exist_ok=True)
    texts = [utterance.text for utterance in load(data, corpora) if utterance.text]
    text_options = prune_text_encoder(models / "multilingual-e5-small", out, texts, pieces)
    folder = next(path for name in ("whisper-base-encoder", "whisper-base") if (path := models / name).exists())
    speech_options = cut_speech_encoder(folder, out)
    options = {
        "text_encoder": text_options.model_dump(),
        "speech_encoder": speech_options.model_dump(),
        "sources": {"text_encoder": text_source, "speech_encoder": speech_source},
    }
    (out / "encoders.json").write_text(json.dumps(options, indent=1))


def prune_text_encoder(folder: Path, out: Path, texts: Iterable[str], pieces: int) -> TextEncoderConfig:
    """Keep the special pieces, single letters, the pieces that `texts` need, and the best of each script."""
    description = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: list[list[Any]] = description["model"]["vocab"]
    kept = _kept_pieces(Tokenizer.from_file(str(folder / "tokenizer.json")), description, texts, pieces)
    description["model"]["vocab"] = [vocabulary[id_] for id_ in kept]
    new_ids = {old: new for new, old in enumerate(kept)}
    description["model"]["unk_id"] = new_ids[description["model"]["unk_id"]]
    for added in description["added_tokens"]:
        added["id"] = new_ids[added["id"]]
    for special in description["post_processor"]["special_tokens"].values():
        special["ids"] = [new_ids[id_] for id_ in special["ids"]]
    (out / "tokenizer.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")

    state = load_file(folder / "model.safetensors")
    embeddings = "embeddings.word_embeddings.weight"
    state[embeddings] = state[embeddings][torch.tensor(kept)]
    # The hub's file has also a pooler and the numbers of the positions, which the encoder does not.
    kept_weights = {
        f"bert.{name}": tensor
        for name, tensor in state.items()
        if not name.startswith("pooler.") and name != "embeddings.position_ids"
    }
    _save(kept_weights, out / "text_encoder.safetensors")
    return TextEncoderConfig(vocabulary=len(kept), padding_id=new_ids[1])


def cut_speech_encoder(folder: Path, out: Path) -> SpeechEncoderConfig:
    """Leave out the layers after the last one that is given."""
    config = SpeechEncoderConfig()
    state = {
        name.removeprefix("model.encoder."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if not name.startswith("model.decoder.")
    }
    wanted = ("conv1.", "conv2.", "embed_positions.", *(f"layers.{i}." for i in range(config.layers)))
    kept = {name: tensor for name, tensor in state.items() if name.startswith(wanted)}
    _save(kept, out / "speech_encoder.safetensors")
    return config


def _kept_pieces(tokenizer: Tokenizer, description: dict[str, Any], texts: Iterable[str], pieces: int) -> list[int]:
    """Ids, in the old order: a Unigram vocabulary is sorted by score from the first ordinary piece on."""
    vocabulary = [piece for piece, _ in description["model"]["vocab"]]
    kept = {added["id"] for added in description["added_tokens"]}
    kept |= {
        id_ for id_, piece in enumerate(vocabulary) if len(piece.strip("▁")) <= 1 and _script(piece) in (None, *SCRIPTS)
    }
    counts: dict[int, int] = {}
    for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
        for id_ in encoding.ids:
            counts[id_] = counts.get(id_, 0) + 1
    quota = dict(SCRIPTS)
    best = [id_ for id_, piece in enumerate(vocabulary) if _within(quota, _script(piece))]
    wanted = [*best, *sorted(counts, key=counts.__getitem__, reverse=True)]
    for id_ in wanted:
        if len(kept) >= pieces:
            break
        if _script(vocabulary[id_]) in (None, *SCRIPTS):
            kept.add(id_)
    return sorted(kept)


def _within(quota: dict[str, int], script: str | None) -> bool:
    if script is None or quota.get(script, 0) == 0:
        return False
    quota[script] -= 1
    return True


def _script(piece: str) -> str | None:
    """The script of a piece's first letter, as Unicode names it; None for digits, punctuation and pictures."""
    for letter in piece.strip("▁"):
        if unicodedata.category(letter)[0] in "LM":
            return unicodedata.name(letter, "UNKNOWN").split()[0]
    return None


def _save(state: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, path)
