"""The recipe `build_encoders`: reduces two pretrained models to a bundle's encoders.

It keeps only the layers and the vocabulary that are needed, and stores the weights in few bits.
"""

import json
import unicodedata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType] - its PathLike is bare

from shared.modeling.speech_encoders import SpeechEncoderConfig
from shared.modeling.text_encoders import TextEncoderConfig
from training.encoder_files import write_speech_encoder, write_text_encoder

SCRIPTS = {
    "LATIN",
    "CYRILLIC",
    "GREEK",
    "ARABIC",
    "DEVANAGARI",
    "BENGALI",
    "GURMUKHI",
    "GUJARATI",
    "ORIYA",
    "TAMIL",
    "TELUGU",
    "KANNADA",
    "MALAYALAM",
    "SINHALA",
}
"""The scripts whose pieces stay in the vocabulary, by their Unicode names."""


def build_encoders(
    models: Path,
    out: Path,
    text_source: str = "intfloat/multilingual-e5-small",
    speech_source: str = "openai/whisper-base",
) -> None:
    """Write `text_encoder.safetensors`, `tokenizer.json` and `speech_encoder.safetensors`, with their options.

    Args:
        models: The folder with `multilingual-e5-small` and `whisper-base-encoder` (or `whisper-base`), as on the hub.
        out: The folder to write.
        text_source: The origin of the text encoder for the manifest: repo@revision.
        speech_source: The origin of the speech encoder for the manifest: repo@revision.
    """
    out.mkdir(parents=True, exist_ok=True)
    text_options = prune_text_encoder(models / "multilingual-e5-small", out)
    folder = next(path for name in ("whisper-base-encoder", "whisper-base") if (path := models / name).exists())
    speech_options = cut_speech_encoder(folder, out)
    options = {
        "text_encoder": text_options.model_dump(),
        "speech_encoder": speech_options.model_dump(),
        "sources": {"text_encoder": text_source, "speech_encoder": speech_source},
    }
    (out / "encoders.json").write_text(json.dumps(options, indent=1))


def prune_text_encoder(folder: Path, out: Path) -> TextEncoderConfig:
    """Write the text encoder without the pieces of other scripts, its matrices in 4 bits, and return its options."""
    description = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: list[list[Any]] = description["model"]["vocab"]
    special = {added["id"] for added in description["added_tokens"]}
    kept = [id_ for id_, (piece, _) in enumerate(vocabulary) if id_ in special or _script(piece) in (None, *SCRIPTS)]
    description["model"]["vocab"] = [vocabulary[id_] for id_ in kept]
    new_ids = {old: new for new, old in enumerate(kept)}
    description["model"]["unk_id"] = new_ids[description["model"]["unk_id"]]
    for added in description["added_tokens"]:
        added["id"] = new_ids[added["id"]]
    for framing in description["post_processor"]["special_tokens"].values():
        framing["ids"] = [new_ids[id_] for id_ in framing["ids"]]
    compact = json.dumps(description, ensure_ascii=False, separators=(",", ":"))
    (out / "tokenizer.json").write_text(compact, encoding="utf-8")

    state = load_file(folder / "model.safetensors")
    embeddings = "embeddings.word_embeddings.weight"
    state[embeddings] = state[embeddings][torch.tensor(kept)]
    # The hub's file also has a pooler and the position ids, which the encoder does not have.
    kept_weights = {
        f"bert.{name}": tensor
        for name, tensor in state.items()
        if not name.startswith("pooler.") and name != "embeddings.position_ids"
    }
    write_text_encoder(kept_weights, out / "text_encoder.safetensors", layers=4)
    return TextEncoderConfig(vocabulary=len(kept), padding_id=new_ids[1])


def cut_speech_encoder(folder: Path, out: Path) -> SpeechEncoderConfig:
    """Write the speech encoder without the layers after the last one that is used, and return its options."""
    config = SpeechEncoderConfig()
    state = {
        name.removeprefix("model.encoder."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if not name.startswith("model.decoder.")
    }
    wanted = ("conv1.", "conv2.", "embed_positions.", *(f"layers.{i}." for i in range(config.layers)))
    kept = {name: tensor for name, tensor in state.items() if name.startswith(wanted)}
    write_speech_encoder(kept, out / "speech_encoder.safetensors")
    return config


def _script(piece: str) -> str | None:
    """Returns the Unicode name of the script of a piece's first letter; None for digits, punctuation and emoji."""
    for letter in piece.strip("▁"):
        if unicodedata.category(letter)[0] in "LM":
            return unicodedata.name(letter, "UNKNOWN").split()[0]
    return None
