"""The pipeline: the audio or text of one turn in, its transcript and prediction out.

The analysis of a turn is written once, in `Pipeline.analyze`, as a sequence of stages. Every stage takes a batch and
returns for each item what it would return for that item alone. A command runs the stages on one turn at a time; a
worker passes a `StageRunner` that runs the items of many turns in one batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

import numpy as np

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.audio.levels import AUDIBLE_DBFS, amplify_quiet, level_dbfs
from shared.domain.bundle import Component, ModelBundle
from shared.domain.prediction import AbstentionReason, Prediction
from shared.domain.transcript import Transcript
from shared.domain.warning import AnalysisWarning, WarningCode
from shared.modeling.baseline import AudioSummary
from shared.modeling.execution import ON_CPU, Execution
from shared.modeling.lazy_model import LazyModel
from shared.modeling.loading import read_manifest, verify_files
from shared.modeling.predictor import (
    EmotionPredictor,
    EncodedText,
    EncodedTurn,
    TextInput,
    load_predictor,
    no_prediction,
)
from shared.modeling.text_normalization import has_letters
from shared.modeling.transcriber import Clip, Transcriber
from shared.modeling.vad import TimeSpan
from shared.modeling.whisper import MARGIN_S
from shared.self_check import TEXT, check_step, decode_clip

Item = TypeVar("Item")
Result = TypeVar("Result")

CHARACTERS_PER_TOKEN = 4
MIN_TOKENS = 16
"""The size of an empty text, in tokens: what encoding it costs besides the cost of its tokens."""


@dataclass(frozen=True)
class Stage(Generic[Item, Result]):
    """One step of the analysis, which takes a batch.

    Attributes:
        name: the name in metrics, traces and settings.
        run: returns the results of some items, in their order. A result does not depend on the other items.
        size: the cost of an item, above 0. As items are padded to the longest, a batch costs its number of items times
            the size of the largest.
    """

    name: str
    run: Callable[[Sequence[Item]], list[Result]]
    size: Callable[[Item], float]


class StageRunner(Protocol):
    """Starts a stage on an item. The function that is returned waits for the result, or raises the stage's error."""

    def __call__(self, stage: Stage[Item, Result], item: Item, /) -> Callable[[], Result]: ...


def run_immediately(stage: Stage[Item, Result], item: Item, /) -> Callable[[], Result]:
    """Runs a stage on one item, in the calling thread. The `StageRunner` that is used outside of workers."""
    (result,) = stage.run([item])
    return lambda: result


@dataclass(frozen=True)
class Analysis:
    """The result of the pipeline for one turn.

    Attributes:
        transcript: None if the turn has no text and nobody speaks in its audio.
        prediction: the emotion, or the reason why there is none.
        audio_summary: what later turns of the speaker need for their baseline. None if no audio was encoded, or the
            bundle keeps no baselines.
    """

    transcript: Transcript | None
    prediction: Prediction
    audio_summary: AudioSummary | None


class Pipeline:
    """The models of a bundle and a transcriber. Threads may share it. The models of audio are loaded on first use.

    Attributes:
        bundle: the manifest; its id identifies the models.
        vad: the stage that detects where somebody speaks; its size is in seconds of audio.
        transcribe: the stage that transcribes; in seconds of Whisper's windows.
        text: the stage that encodes text; in tokens.
        speech: the stage that encodes audio; in seconds of audio.
        fuse: the stage that predicts from text, audio or both; in tokens.
    """

    def __init__(
        self, bundle: ModelBundle, predictor: EmotionPredictor, load_transcriber: Callable[[], Transcriber]
    ) -> None:
        self.bundle = bundle
        self._predictor = predictor
        self._transcriber = LazyModel(load_transcriber)
        self.vad = Stage("vad", self._detect_speech, lambda samples: _seconds(samples) + 1)
        self.transcribe = Stage("transcribe", self._transcribe, lambda clip: _seconds(clip.samples) + MARGIN_S)
        self.text = Stage("text", predictor.encode_text, _text_tokens)
        self.speech = Stage("speech", predictor.encode_audio, lambda samples: _seconds(samples) + 1)
        self.fuse = Stage("fuse", predictor.fuse, _encoded_tokens)

    @classmethod
    def load(
        cls,
        folder: Path,
        load_transcriber: Callable[[], Transcriber],
        execution: Execution = ON_CPU,
        asr: Component | None = None,
    ) -> Self:
        """Returns the pipeline of the bundle in `folder`.

        Args:
            folder: the folder of the bundle.
            load_transcriber: called when the first audio is analysed.
            execution: device and precision of the models.
            asr: the component that `load_transcriber` loads, if it is not the bundle's. It changes the bundle's id.

        Raises:
            BundleError: the bundle is incomplete, not valid, or one that this version of Tenor cannot load.
        """
        bundle = read_manifest(folder)
        verify_files(folder, bundle)
        if asr is not None:
            bundle = bundle.model_copy(update={"asr": asr})
        return cls(bundle, load_predictor(folder, bundle, execution), load_transcriber)

    @property
    def context_turns(self) -> int:
        """How many turns before a turn `analyze` reads as context; 0 if the bundle's models do not read context."""
        return self._predictor.context_turns

    def analyze(
        self,
        *,
        samples: Samples | None,
        text: str | None,
        language: str | None = None,
        earlier: Sequence[AudioSummary] = (),
        context: Sequence[str] = (),
        earlier_languages: Sequence[str] = (),
        submit: StageRunner = run_immediately,
    ) -> Analysis:
        """Returns the transcript and prediction of a turn that has audio, text or both.

        If text is given, it is the transcript, and the audio is not transcribed. The prediction uses the audio only if
        somebody speaks in it, and the text only if the text encoder can encode it: it must have one, and its vocabulary
        must cover most of the text's script. A doubtful transcript counts less; see `Transcript.text_weight`. Quiet
        audio is amplified first.

        Args:
            samples: the audio of the turn, 16 kHz mono, shape [samples].
            text: the text of the turn.
            language: BCP 47 tag of the spoken language, if it is known.
            earlier: audio summaries of the speaker's earlier turns, made by the same bundle, in any order.
            context: texts of the session's turns before this one, whoever spoke, the oldest first. Only the last
                `context_turns` are used.
            earlier_languages: the languages of the session's turns before this one, which are likelier than others.
            submit: how stages are run.
        """
        transcript = None if text is None else Transcript.provided(text, language)
        audio, level, warnings = None, None, list[AnalysisWarning]()
        if samples is not None:
            level, samples = level_dbfs(samples), amplify_quiet(samples)
            spans = submit(self.vad, samples)()
            warnings += _audio_warnings(level, spans)
            # Started before transcription, so that a worker can run both at the same time.
            audio = submit(self.speech, samples) if spans else None
            if transcript is None:
                transcript = submit(self.transcribe, Clip(samples, language, spans, earlier_languages))()
        encoded_text, text_weight = None, 1.0 if transcript is None else transcript.text_weight
        if transcript is not None and text_weight > 0 and self._predictor.can_encode(transcript.text):
            encoded_text = submit(self.text, TextInput(transcript.text, context))
        encoded = None if encoded_text is None else encoded_text()
        warnings += _text_warnings(transcript, encoded)
        prediction, summary = no_prediction(_reason(transcript)), None
        if encoded is not None or audio is not None:
            turn = EncodedTurn(encoded, None if audio is None else audio(), earlier, text_weight)
            prediction, summary = submit(self.fuse, turn)()
        about = {"level_dbfs": None if level is None else round(level, 1), "warnings": tuple(warnings)}
        return Analysis(transcript, prediction.model_copy(update=about), summary)

    def warm_up(self) -> None:
        """Load all models and run every stage, so that the first turn neither fails nor is slower than later ones.

        Raises:
            SetupError: a stage fails. The message names the stage and the packages that it needs.
            WeightsMissing: no source has Whisper's weights.
        """
        self._check_stages()
        # PyTorch compiles separately for one item, for items of equal length, and for items of different lengths.
        for lengths in ((1,), (1, 1), (1, 2, 3)):
            audio = self._predictor.encode_audio([np.zeros(size * SAMPLE_RATE, np.float32) for size in lengths])
            text: list[EncodedText | None] = [None for _ in lengths]
            if self._predictor.can_encode("warm"):
                text = [*self._predictor.encode_text([TextInput("warm " * size) for size in lengths])]
            self._predictor.fuse([EncodedTurn(*of) for of in zip(text, audio, strict=True)])

    def _check_stages(self) -> None:
        """Run every stage on the clip of the self-check, even if the detector finds no speech in it."""
        samples = decode_clip()
        whole = [(0.0, samples.size / SAMPLE_RATE)]
        with check_step("load Whisper", "faster-whisper", "ctranslate2"):
            self._transcriber.get()
        with check_step("detect speech", "faster-whisper", "onnxruntime"):
            (spans,) = self.vad.run([samples])
        with check_step("transcribe", "faster-whisper", "ctranslate2"):
            self.transcribe.run([Clip(samples, speech=spans or whole)])
        text: list[EncodedText | None] = [None]
        if self._predictor.can_encode(TEXT):
            with check_step("encode text", "torch", "transformers", "tokenizers"):
                text = [*self.text.run([TextInput(TEXT)])]
        with check_step("encode audio", "torch", "transformers"):
            audio = self.speech.run([samples])
        with check_step("predict an emotion", "torch"):
            self.fuse.run([EncodedTurn(text[0], audio[0])])

    def _detect_speech(self, clips: Sequence[Samples]) -> list[list[TimeSpan]]:
        transcriber = self._transcriber.get()
        return [transcriber.detect_speech(samples) for samples in clips]

    def _transcribe(self, clips: Sequence[Clip]) -> list[Transcript]:
        return self._transcriber.get().transcribe(clips)


def _reason(transcript: Transcript | None) -> AbstentionReason:
    """Why a turn without speech has no prediction, whose text, if any, is not encoded."""
    if transcript is None or not transcript.segments:
        return AbstentionReason.no_speech
    if not has_letters(transcript.text):
        return AbstentionReason.no_letters
    return AbstentionReason.unread_script if transcript.text_weight else AbstentionReason.too_uncertain


def _text_warnings(transcript: Transcript | None, encoded: EncodedText | None) -> tuple[AnalysisWarning, ...]:
    """Returns the warnings about a turn's text that is read in part, not at all, or counts less."""
    if transcript is None or not has_letters(transcript.text):
        return ()
    if transcript.text_weight < 1:
        message = f"the transcript is doubtful, so its text counts {transcript.text_weight:.0%} of its usual weight"
        return (AnalysisWarning(WarningCode.transcript_doubtful, message),)
    unknown_script = "of a script that the text encoder does not know"
    if encoded is None:
        return (AnalysisWarning(WarningCode.text_unread, f"the text is {unknown_script} and was not read"),)
    if encoded.unread:
        message = f"{encoded.unread} letters of the text are {unknown_script} and were not read"
        return (AnalysisWarning(WarningCode.text_unread, message),)
    return ()


def _audio_warnings(level: float, spans: Sequence[TimeSpan]) -> tuple[AnalysisWarning, ...]:
    """Returns the warnings about a turn's audio, given its level in dBFS and its spans of speech."""
    if spans or level < AUDIBLE_DBFS:
        return ()
    message = f"no speech was found in the audio, whose level is {level:.0f} dBFS"
    return (AnalysisWarning(WarningCode.no_speech_found, message),)


def _seconds(samples: Samples) -> float:
    return samples.size / SAMPLE_RATE


def _text_tokens(turn: TextInput) -> float:
    return MIN_TOKENS + sum(map(len, (turn.text, *turn.context))) / CHARACTERS_PER_TOKEN


def _encoded_tokens(turn: EncodedTurn) -> float:
    text = 0 if turn.text is None else sum(map(len, turn.text.windows))
    return MIN_TOKENS + text + (0 if turn.audio is None else len(turn.audio))
