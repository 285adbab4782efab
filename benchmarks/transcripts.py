"""`tenor bench transcripts`: word error rate and time per clip, compared with faster-whisper's defaults.

The clips are synthetic, or those of a manifest.
"""

# faster-whisper is not fully typed.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import csv
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import jiwer
from faster_whisper import WhisperModel
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from benchmarks.figures import Figure, timed
from shared.audio.decoder import Samples, decode
from shared.errors import InvalidRequest
from shared.modeling.transcriber import Clip, Transcriber
from shared.modeling.whisper_weights import whisper_folder
from shared.settings import Settings

COLUMNS = ("path", "text", "language")
TENOR, TENOR_WITH_LANGUAGE, WHISPER = "Tenor", "Tenor, told the language", "faster-whisper"

Transcribe = Callable[[Samples, str], str]
"""Returns the transcript of audio; it may ignore the language, which is the second argument."""


@dataclass(frozen=True)
class ReferenceClip:
    """An audio clip with its reference transcript.

    Attributes:
        audio: the file or the samples.
        text: the transcript.
        language: ISO 639-1 code.
        kind: clips of one kind share their figures.
    """

    audio: Path | Samples
    text: str
    language: str
    kind: str


@dataclass
class SystemResult:
    """The result of one system for the clips of one kind: normalised transcripts, and seconds per clip."""

    references: list[str] = field(default_factory=list[str])
    hypotheses: list[str] = field(default_factory=list[str])
    seconds: list[float] = field(default_factory=list[float])

    @property
    def word_error_rate(self) -> float:
        """Word error rate over all clips, in per cent of the reference words."""
        return 100 * jiwer.wer(self.references, self.hypotheses)


def read_manifest(path: Path) -> list[ReferenceClip]:
    """Read the clips of a CSV file with the columns `COLUMNS`; paths are relative to the folder of the file.

    Raises:
        InvalidRequest: the file cannot be read, a column is empty, a clip does not exist, or a text has no word.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error
    clips = [_clip(path, line, row) for line, row in enumerate(rows, start=2)]
    if not clips:
        raise InvalidRequest(f"{path} names no clip: it needs the columns {', '.join(COLUMNS)}, and a line for each")
    return clips


def synthetic_reference_clips() -> list[ReferenceClip]:
    """Returns single words, short cuts, long recordings and sentences in several languages, of synthetic voices."""
    from benchmarks.synthetic_clips import synthetic_clips

    return [ReferenceClip(samples, text, language, kind) for kind, samples, text, language in synthetic_clips()]


def compare_transcripts(settings: Settings, clips: Iterable[ReferenceClip]) -> Generator[Figure]:
    """Yield the word error rate and the time of Tenor, of Tenor given the language, and of faster-whisper.

    The systems take turns at each clip, whose audio is decoded beforehand. Tenor also times the words, which
    faster-whisper does not by default. Texts are normalised as in Whisper's paper (Radford et al. 2022, appendix C),
    without its table of British spellings.
    """
    systems = _systems(settings)
    results: dict[tuple[str, str], SystemResult] = defaultdict(SystemResult)
    for number, clip in enumerate(clips):
        samples = decode(clip.audio).samples if isinstance(clip.audio, Path) else clip.audio
        for name, transcribe in systems.items():
            if not number:
                transcribe(samples, clip.language)  # warm up
            _add_clip(results[clip.kind, name], clip, samples, transcribe)
    for kind in sorted({kind for kind, _ in results}):
        yield from _figures(kind, {name: results[kind, name] for name in systems})


def _clip(manifest: Path, line: int, row: dict[str, str | None]) -> ReferenceClip:
    missing = [column for column in COLUMNS if not (row.get(column) or "").strip()]
    if missing:
        raise InvalidRequest(f"{manifest}, line {line}: {' and '.join(missing)} should be there")
    path, text, language = (str(row[column]) for column in COLUMNS)
    clip = ReferenceClip(manifest.parent / path, text, language.lower(), language.lower())
    if not (manifest.parent / path).is_file():
        raise InvalidRequest(f"{manifest}, line {line}: there is no file {manifest.parent / path}")
    if not _normalised(text, clip.language):
        raise InvalidRequest(f"{manifest}, line {line}: {text!r} holds no word")
    return clip


def _systems(settings: Settings) -> dict[str, Transcribe]:
    folder = whisper_folder(settings.models.whisper_dir, settings.data_dir / "models")
    tenor = Transcriber.load(folder, device="cpu")
    whisper = WhisperModel(str(folder), device="cpu", compute_type="int8")

    def transcribe_by_defaults(samples: Samples, language: str) -> str:
        segments, _ = whisper.transcribe(samples)  # detects the language
        return "".join(segment.text for segment in segments)

    return {
        TENOR: lambda samples, _: tenor.transcribe([Clip(samples)])[0].text,
        TENOR_WITH_LANGUAGE: lambda samples, language: tenor.transcribe([Clip(samples, language)])[0].text,
        WHISPER: transcribe_by_defaults,
    }


def _add_clip(result: SystemResult, clip: ReferenceClip, samples: Samples, transcribe: Transcribe) -> None:
    transcripts: list[str] = []
    result.seconds.append(timed(lambda: transcripts.append(transcribe(samples, clip.language))))
    result.hypotheses.append(_normalised(transcripts[0], clip.language))
    result.references.append(_normalised(clip.text, clip.language))


def _normalised(text: str, language: str) -> str:
    normalise: Any = EnglishTextNormalizer(dict[str, str]()) if language == "en" else BasicTextNormalizer()
    return normalise(text).strip()


def _figures(kind: str, systems: dict[str, SystemResult]) -> Generator[Figure]:
    for name, result in systems.items():
        yield Figure.of(f"{kind}: {name}, word error rate", "%", [result.word_error_rate])
        yield Figure.of(f"{kind}: {name}, a clip", "s", result.seconds)
    for name in (TENOR, TENOR_WITH_LANGUAGE):
        ratio = median(systems[WHISPER].seconds) / median(systems[name].seconds)
        yield Figure.of(f"{kind}: {name}, faster", "times", [ratio])
