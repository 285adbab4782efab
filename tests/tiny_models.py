"""A whole bundle of random weights, small enough to make in a moment, and a transcriber without models."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import Unigram
from torch import nn

from shared.audio.decoder import Samples
from shared.domain.bundle import Calibration, Component, ModelBundle
from shared.domain.emotion import EKMAN7
from shared.domain.transcript import Segment, Transcript, TranscriptSource
from shared.modeling.fusion import FusionConfig, build_fusion
from shared.modeling.loading import MANIFEST, sha256
from shared.modeling.pipeline import Pipeline
from shared.modeling.speech_encoders import SpeechEncoder, SpeechEncoderConfig
from shared.modeling.text_encoders import TextEncoder, TextEncoderConfig
from shared.modeling.transcriber import Clip, Transcriber

TEXT = TextEncoderConfig(
    vocabulary=40, width=32, layers=1, heads=2, hidden=32, positions=64, max_tokens=64, context_turns=2
)
SPEECH = SpeechEncoderConfig(width=16, layers=2, heads=2, hidden=32, first_layer=1, positions=100)
FUSION = FusionConfig(
    text_width=32,
    audio_width=16,
    audio_layers=2,
    width=16,
    heads=2,
    hidden=16,
    pooling_heads=2,
    head_width=8,
    relative=True,
)


def tokenizer() -> Tokenizer:
    """Knows Latin letters only, each as a piece of its own."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", ":", "!", ".", "I", "▁"]
    pieces = [(piece, -2.0) for piece in ["<s>", "<pad>", "</s>", "<unk>", *letters]]
    built = Tokenizer(Unigram(pieces, unk_id=3))
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    return built


def write_bundle(folder: Path, abstain_below: float = 0.0, fusion: FusionConfig = FUSION) -> Path:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer().save(str(folder / "tokenizer.json"))
    modules: dict[str, nn.Module] = {
        "text_encoder": TextEncoder(TEXT, tokenizer()),
        "speech_encoder": SpeechEncoder(SPEECH),
        "fusion": build_fusion(fusion),
    }
    if fusion.relative:
        nn.init.normal_(cast("nn.Linear", modules["fusion"].summary_head).weight)
    for name, module in modules.items():
        state = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")

    def component(kind: str, options: dict[str, object], *files: str) -> Component:
        digests = {name: sha256(folder / name) for name in files}
        return Component(kind=kind, source="random", licence="none", files=digests, options=options)

    bundle = ModelBundle(
        name="tiny",
        version="1",
        label_space=EKMAN7,
        asr=component("faster_whisper", {}),
        text_encoder=component("xlmr_vocabulary_bert", TEXT.model_dump(), "text_encoder.safetensors", "tokenizer.json"),
        speech_encoder=component("whisper_encoder", SPEECH.model_dump(), "speech_encoder.safetensors"),
        fusion=component("cross_attention", fusion.model_dump(), "fusion.safetensors"),
        context_turns=TEXT.context_turns,
        calibration=Calibration(abstain_below=abstain_below),
        metrics={},
        training_data=[],
        licence="none",
    )
    (folder / MANIFEST).write_text(yaml.safe_dump(bundle.model_dump(mode="json")), encoding="utf-8")
    return folder


class StubTranscriber:
    """A transcriber that returns the text that a test gives it."""

    def __init__(self, text: str = "I am happy", speaks: bool = True) -> None:
        self._text, self._speaks = text, speaks

    def transcribe(self, clips: Sequence[Clip]) -> list[Transcript]:
        segments = (Segment(start=0.0, end=1.0, text=self._text),) if self._speaks else ()
        return [
            Transcript(
                language=clip.language or "en",
                language_probability=0.9,
                segments=segments,
                source=TranscriptSource.asr,
            )
            for clip in clips
        ]

    def detect_speech(self, samples: Samples) -> list[tuple[float, float]]:
        return [(0.0, 1.0)] if self._speaks else []


def pipeline(folder: Path, transcriber: StubTranscriber | None = None) -> Pipeline:
    """Returns the pipeline of a bundle; without `transcriber`, one that must not need audio models."""

    def load_transcriber() -> Transcriber:
        assert transcriber is not None, "the audio models were loaded"
        return cast("Transcriber", transcriber)

    return Pipeline.load(folder, load_transcriber)
