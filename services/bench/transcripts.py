"""`tenor bench transcripts`: how well and how fast clips are transcribed, against faster-whisper's defaults."""

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

from services.bench.figures import Figure, timed
from shared.audio.decoder import Samples, decode
from shared.errors import InvalidRequest
from shared.modeling.transcriber import Clip, Transcriber
from shared.modeling.whisper_weights import whisper_folder
from shared.settings import Settings

COLUMNS = ("path", "text", "language")
TENOR, TENOR_TOLD, WHISPER = "Tenor", "Tenor, told the language", "faster-whisper"

Transcribe = Callable[[Samples, str], str]
"""Words from sound, and from the language, which it may leave alone."""


@dataclass(frozen=True)
class Spoken:
    """A clip, the words that are said in it, and their language's ISO 639-1 code."""

    path: Path
    text: str
    language: str


@dataclass
class Heard:
    """What one way of transcribing made of one language's clips; normalised words, and seconds."""

    said: list[str] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def word_error_rate(self) -> float:
        """In per cent of the words said, over all clips."""
        return 100 * jiwer.wer(self.said, self.heard)


def read_manifest(path: Path) -> list[Spoken]:
    """The clips of a CSV file with the columns `COLUMNS`; paths are relative to its folder.

    Raises:
        InvalidRequest: there is no such file, a column is missing, a clip is not there, or nothing is said in it.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error
    clips = [_spoken(path, line, row) for line, row in enumerate(rows, start=2)]
    if not clips:
        raise InvalidRequest(f"{path} names no clip: it needs the columns {', '.join(COLUMNS)}, and a line for each")
    return clips


def transcripts(settings: Settings, clips: Iterable[Spoken]) -> Generator[Figure]:
    """Each clip through Tenor, through Tenor told its language, and through faster-whisper, one after another.

    The sound is decoded before. Tenor also times the words, which faster-whisper by its defaults does not. Words are
    compared as Whisper's paper compares them (Radford et al. 2022, appendix C), but for its table of British spellings.
    """
    ways = _ways(settings)
    results: dict[tuple[str, str], Heard] = defaultdict(Heard)
    for number, clip in enumerate(clips):
        samples = decode(clip.path)
        for name, transcribe in ways.items():
            if not number:
                transcribe(samples, clip.language)
            _hear(results[clip.language, name], clip, samples, transcribe)
    for language in sorted({language for language, _ in results}):
        yield from _figures(language, {name: results[language, name] for name in ways})


def _spoken(manifest: Path, line: int, row: dict[str, str | None]) -> Spoken:
    missing = [column for column in COLUMNS if not (row.get(column) or "").strip()]
    if missing:
        raise InvalidRequest(f"{manifest}, line {line}: {' and '.join(missing)} should be there")
    path, text, language = (str(row[column]) for column in COLUMNS)
    clip = Spoken(manifest.parent / path, text, language.lower())
    if not clip.path.is_file():
        raise InvalidRequest(f"{manifest}, line {line}: there is no file {clip.path}")
    if not _normalised(text, clip.language):
        raise InvalidRequest(f"{manifest}, line {line}: {text!r} holds no word")
    return clip


def _ways(settings: Settings) -> dict[str, Transcribe]:
    folder = whisper_folder(settings.whisper_dir, settings.data_dir / "models")
    tenor, whisper = (
        Transcriber.load(folder, device="cpu"),
        WhisperModel(str(folder), device="cpu", compute_type="int8"),
    )

    def plain(samples: Samples, language: str) -> str:
        segments, _ = whisper.transcribe(samples)  # told nothing
        return "".join(segment.text for segment in segments)

    return {
        TENOR: lambda samples, _: tenor.transcribe([Clip(samples)])[0].text,
        TENOR_TOLD: lambda samples, language: tenor.transcribe([Clip(samples, language)])[0].text,
        WHISPER: plain,
    }


def _hear(result: Heard, clip: Spoken, samples: Samples, transcribe: Transcribe) -> None:
    words: list[str] = []
    result.seconds.append(timed(lambda: words.append(transcribe(samples, clip.language))))
    result.heard.append(_normalised(words[0], clip.language))
    result.said.append(_normalised(clip.text, clip.language))


def _normalised(text: str, language: str) -> str:
    normalise: Any = EnglishTextNormalizer({}) if language == "en" else BasicTextNormalizer()
    return normalise(text).strip()


def _figures(language: str, ways: dict[str, Heard]) -> Generator[Figure]:
    for name, heard in ways.items():
        yield Figure.of(f"{language}: {name}, words wrong", "%", [heard.word_error_rate])
        yield Figure.of(f"{language}: {name}, a clip", "s", heard.seconds)
    for name in (TENOR, TENOR_TOLD):
        ratio = median(ways[WHISPER].seconds) / median(ways[name].seconds)
        yield Figure.of(f"{language}: {name}, faster", "times", [ratio])
