"""`python -m services.bench.plain_chain`: what one would write without Tenor, to be measured beside it.

faster-whisper with its defaults, then transformers' pipelines for the voice and the words, one clip at a time. What the
networks know does not change how long they take, so they are as large as Tenor's and know nothing.

Each line on stdin is a JSON list of files; each line on stdout the list of their seconds.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from faster_whisper import WhisperModel
from faster_whisper.audio import decode_audio
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    pipeline,
)

from services.bench.figures import timed
from shared.modeling.loading import SHIPPED
from shared.modeling.whisper_weights import whisper_folder
from shared.settings import get_settings

LABELS: dict[str, Any] = {"num_labels": 7}
TOKENIZER = SHIPPED / "compact" / "tokenizer.json"


class PlainChain:
    """The models, loaded once.

    Args:
        whisper: a faster-whisper model's folder.
        voice: the shape of a classifier with a Whisper encoder; transformers' default is Whisper base's.
        words: the shape of a text classifier over the vocabulary of `TOKENIZER`; the default is
            multilingual-e5-small's, but for the words that Tenor's was pruned of.
    """

    def __init__(self, whisper: Path, voice: WhisperConfig | None = None, words: BertConfig | None = None) -> None:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(TOKENIZER), pad_token="<pad>", unk_token="<unk>", model_max_length=512
        )
        self._whisper = WhisperModel(str(whisper), device="cpu", compute_type="int8")
        self._voice: Any = pipeline(
            "audio-classification",
            model=WhisperForAudioClassification(voice or whisper_base()),
            feature_extractor=WhisperFeatureExtractor(),
        )
        self._words: Any = pipeline(
            "text-classification",
            model=BertForSequenceClassification(words or e5_small(len(tokenizer))),
            tokenizer=tokenizer,
        )

    def analyze(self, file: Path) -> tuple[str, list[dict[str, Any]], list[dict[str, Any]]]:
        """The words of a clip, and how each of the classifiers reads it."""
        samples: Any = decode_audio(str(file))  # of one channel, as it is not told to split
        segments, _ = self._whisper.transcribe(samples)
        text = "".join(segment.text for segment in segments).strip()
        return text, self._voice({"raw": samples, "sampling_rate": 16000}), self._words(text, truncation=True)


def whisper_base() -> WhisperConfig:
    """Radford et al. 2022, table 1."""
    shape = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
    return WhisperConfig(num_mel_bins=80, **shape, **LABELS)


def e5_small(vocabulary: int) -> BertConfig:
    """Wang et al. 2024, Multilingual E5: small is a Multilingual MiniLM of 12 layers."""
    shape = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536}
    return BertConfig(vocab_size=vocabulary, **shape, **LABELS)


def serve(chain: PlainChain) -> None:
    """Answer every line until there is none."""
    for line in sys.stdin:
        seconds = [timed(lambda file=file: chain.analyze(Path(file))) for file in json.loads(line)]
        sys.stdout.write(json.dumps(seconds) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    settings = get_settings()
    serve(PlainChain(whisper_folder(settings.whisper_dir, settings.data_dir / "models")))
