"""`python -m benchmarks.plain_chain`: analyses clips as a program without Tenor would, for a comparison with Tenor.

It runs faster-whisper with its defaults, then transformers' pipelines for the audio and the text, one clip at a time.
The weights of the classifiers are random, since they do not change the speed; the sizes are those of Tenor's encoders.

Each line on stdin is a JSON list of files, and each line on stdout the list of their seconds.
"""

# faster-whisper is not fully typed.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

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

from benchmarks.figures import timed
from shared.modeling.loading import SHIPPED_BUNDLES
from shared.modeling.whisper_weights import whisper_folder
from shared.settings import get_settings

LABELS: dict[str, Any] = {"num_labels": 7}
TOKENIZER = SHIPPED_BUNDLES / "compact" / "tokenizer.json"


class PlainChain:
    """The loaded models.

    Args:
        whisper: the folder of a faster-whisper model.
        audio: the shape of an audio classifier with a Whisper encoder; the default is Whisper base's.
        text: the shape of a text classifier over the vocabulary of `TOKENIZER`; the default is multilingual-e5-small's
            with Tenor's smaller vocabulary.
    """

    def __init__(self, whisper: Path, audio: WhisperConfig | None = None, text: BertConfig | None = None) -> None:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(TOKENIZER), pad_token="<pad>", unk_token="<unk>", model_max_length=512
        )
        self._whisper = WhisperModel(str(whisper), device="cpu", compute_type="int8")
        self._audio: Any = pipeline(
            "audio-classification",
            model=WhisperForAudioClassification(audio or whisper_base()),
            feature_extractor=WhisperFeatureExtractor(),
        )
        self._text: Any = pipeline(
            "text-classification",
            model=BertForSequenceClassification(text or e5_small(len(tokenizer))),
            tokenizer=tokenizer,
        )

    def analyze(self, file: Path) -> tuple[str, list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the transcript of a clip and the scores of the two classifiers, of the audio and of the text."""
        samples: Any = decode_audio(str(file))  # one channel, as it is not told to split the channels
        segments, _ = self._whisper.transcribe(samples)
        text = "".join(segment.text for segment in segments).strip()
        return text, self._audio({"raw": samples, "sampling_rate": 16000}), self._text(text, truncation=True)


def whisper_base() -> WhisperConfig:
    """The shape of Whisper base's encoder (Radford et al. 2022, table 1)."""
    shape = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
    return WhisperConfig(num_mel_bins=80, **shape, **LABELS)


def e5_small(vocabulary: int) -> BertConfig:
    """The shape of multilingual-e5-small (Wang et al. 2024): a Multilingual MiniLM with 12 layers."""
    shape = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536}
    return BertConfig(vocab_size=vocabulary, **shape, **LABELS)


def answer_requests(chain: PlainChain) -> None:
    """Analyse the files of each line on stdin and write their seconds, until stdin ends."""
    for line in sys.stdin:
        seconds = [timed(lambda file=file: chain.analyze(Path(file))) for file in json.loads(line)]
        sys.stdout.write(json.dumps(seconds) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    settings = get_settings()
    answer_requests(PlainChain(whisper_folder(settings.models.whisper_dir, settings.data_dir / "models")))
