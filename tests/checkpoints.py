"""Tiny checkpoints of random weights, laid out as the published ones of the same architectures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from ctranslate2.converters import TransformersConverter
from faster_whisper.tokenizer import _LANGUAGE_CODES
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
from tokenizers.implementations.byte_level_bpe import ByteLevelBPETokenizer
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import UnigramTrainer
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    XLMRobertaConfig,
    XLMRobertaModel,
)

LAYERS = 3
WIDTH = 16
POSITIONS = 48
"""Of the texts' tokens."""

SENTENCES = [
    "I am so happy that you came to see me today!",
    "why did nobody tell me about it, this makes me angry",
    "what a long and weary way it was, and no one there",
    "ich bin heute sehr traurig, und niemand versteht mich",
    "آج میں بہت خوش ہوں",
] * 4
_LAYERS: dict[str, Any] = {
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "hidden_size": WIDTH,
    "intermediate_size": 32,
}
_WAVES: dict[str, Any] = {
    **_LAYERS,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
_RELATIVE: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}
_LAYER_NORM: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}


def xlm_roberta(folder: Path, layers: int = LAYERS, positions: int = POSITIONS) -> Path:
    # As published: two positions more than tokens, the padding's id being 1.
    config = XLMRobertaConfig(
        vocab_size=_xlm_r_vocabulary(folder),
        max_position_embeddings=positions + 2,
        pad_token_id=1,
        type_vocab_size=1,
        **_deep(_LAYERS, layers),
    )
    return _saved(XLMRobertaModel(config), folder)


def multilingual_e5(folder: Path) -> Path:
    """The small model's shape: a BERT over XLM-R's vocabulary."""
    config = BertConfig(vocab_size=_xlm_r_vocabulary(folder), max_position_embeddings=POSITIONS, **_LAYERS)
    return _saved(BertModel(config), folder)


def roberta(folder: Path, layers: int = LAYERS, positions: int = POSITIONS) -> Path:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        iter(SENTENCES), 400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False
    )
    folder.mkdir(parents=True)
    tokenizer.save_model(str(folder))
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=positions + 2,
        type_vocab_size=1,
        **_deep(_LAYERS, layers),
    )
    return _saved(RobertaModel(config), folder)


def bert(folder: Path) -> Path:
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(iter(SENTENCES), 200, show_progress=False)
    folder.mkdir(parents=True)
    tokenizer.save_model(str(folder))
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=POSITIONS, **_LAYERS)
    return _saved(BertModel(config), folder)


def deberta(folder: Path) -> Path:
    """DeBERTa v3, published with its SentencePiece model alone."""
    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(folder / "spm"),
        vocab_size=100,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    _write(folder / "tokenizer_config.json", {"do_lower_case": False, "vocab_type": "spm"})
    config = DebertaV2Config(
        vocab_size=128,
        max_position_embeddings=POSITIONS,
        type_vocab_size=0,
        **_LAYERS,
        **_RELATIVE,
    )
    return _saved(DebertaV2Model(config), folder)


def wav2vec2(folder: Path, layers: int = LAYERS) -> Path:
    """The base model's shape: its first convolution is normed over time."""
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return _saved(Wav2Vec2Model(Wav2Vec2Config(**_deep(_WAVES, layers))), folder)


def xls_r(folder: Path, layers: int = LAYERS) -> Path:
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return _saved(Wav2Vec2Model(Wav2Vec2Config(**_deep(_WAVES, layers), **_LAYER_NORM)), folder)


def wavlm_base(folder: Path) -> Path:
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=False).save_pretrained(folder)
    return _saved(WavLMModel(WavLMConfig(**_WAVES)), folder)


def wavlm(folder: Path, layers: int = LAYERS) -> Path:
    """The large model's shape."""
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return _saved(WavLMModel(WavLMConfig(**_deep(_WAVES, layers), **_LAYER_NORM)), folder)


def hubert(folder: Path) -> Path:
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return _saved(HubertModel(HubertConfig(**_WAVES)), folder)


def hubert_large(folder: Path) -> Path:
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return _saved(HubertModel(HubertConfig(**_WAVES, **_LAYER_NORM)), folder)


def whisper(folder: Path) -> Path:
    """With a decoder, as published; its positions last two seconds."""
    WhisperFeatureExtractor().save_pretrained(folder)
    config = WhisperConfig(
        vocab_size=60,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        max_source_positions=100,
        max_target_positions=8,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=2,
    )
    return _saved(WhisperForConditionalGeneration(config), folder)


def transcriber(folder: Path, bands: int = 80, languages: int = 99) -> Path:
    """A whole Whisper as faster-whisper reads it; from large-v3 on it has 128 bands and 100 languages."""
    tokenizer = _whisper_tokenizer(languages)
    ids = tokenizer.get_vocab()
    end = ids["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=len(ids),
        num_mel_bins=bands,
        d_model=WIDTH,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
    )
    published, converted = _saved(WhisperForConditionalGeneration(config), folder / "published"), folder / "converted"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(published)
    TransformersConverter(str(published)).convert(str(converted))
    tokenizer.save(str(converted / "tokenizer.json"))
    known: dict[str, object] = {"lang_ids": [ids[f"<|{code}|>"] for code in _LANGUAGE_CODES[:languages]]}
    _write(
        converted / "config.json",
        known | {"alignment_heads": [[1, 0], [1, 1]], "suppress_ids": [], "suppress_ids_begin": []},
    )
    return converted


def _whisper_tokenizer(languages: int) -> Tokenizer:
    """Bytes alone, filled up to the published size; by the empty piece CTranslate2 knows one of many languages."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"piece {number}" for number in range(50_000)), ""]
    tokenizer = Tokenizer(BPE({piece: id_ for id_, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["endoftext", "startoftranscript", *_LANGUAGE_CODES[:languages], "translate", "transcribe", "startoflm"]
    marks += ["startofprev", "nospeech", "notimestamps", *(f"{step * 0.02:.2f}" for step in range(1501))]
    tokenizer.add_special_tokens([f"<|{mark}|>" for mark in marks])
    return tokenizer


TEXT: dict[str, Callable[[Path], Path]] = {
    "XLM-R": xlm_roberta,
    "RoBERTa": roberta,
    "BERT": bert,
    "multilingual E5": multilingual_e5,
    "DeBERTa v3": deberta,
}
SPEECH: dict[str, Callable[[Path], Path]] = {
    "wav2vec 2.0": wav2vec2,
    "XLS-R": xls_r,
    "WavLM base": wavlm_base,
    "WavLM": wavlm,
    "HuBERT": hubert,
    "HuBERT large": hubert_large,
    "Whisper": whisper,
}


def _xlm_r_vocabulary(folder: Path) -> int:
    """Writes a tokenizer of XLM-R's kind; the size of its vocabulary."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = UnigramTrainer(vocab_size=120, special_tokens=marks, unk_token="<unk>", show_progress=False)  # pyright: ignore[reportCallIssue] - its stub is empty
    tokenizer.train_from_iterator(SENTENCES, trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer"})
    return tokenizer.get_vocab_size()


def _deep(shape: dict[str, Any], layers: int) -> dict[str, Any]:
    return shape | {"num_hidden_layers": layers}


def _saved(model: PreTrainedModel, folder: Path) -> Path:
    # Fresh weights are so small that every layer gives what it is given.
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=random) * 0.2)
    model.save_pretrained(folder)
    return folder


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
