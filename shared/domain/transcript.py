"""The words of a turn, with their times."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class TranscriptSource(StrEnum):
    asr = "asr"
    provided = "provided"


class Word(BaseModel):
    """A spoken word; times in seconds within the recording."""

    model_config = ConfigDict(frozen=True)

    start: float
    end: float
    text: str
    probability: float


class Segment(BaseModel):
    """A stretch of speech; times in seconds within the recording."""

    model_config = ConfigDict(frozen=True)

    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()


class Transcript(BaseModel):
    """What was said. Empty segments mean that no speech was found.

    `language` is an ISO 639-1 code, None where it is unknown; `language_probability` is None for provided text.
    """

    model_config = ConfigDict(frozen=True)

    language: str | None
    language_probability: float | None
    segments: tuple[Segment, ...]
    source: TranscriptSource

    @property
    def text(self) -> str:
        return " ".join(segment.text.strip() for segment in self.segments).strip()

    @classmethod
    def provided(cls, text: str, language: str | None = None) -> "Transcript":
        """The transcript of a turn that came with its words."""
        return cls(
            language=language,
            language_probability=None,
            segments=(Segment(start=0.0, end=0.0, text=text),),
            source=TranscriptSource.provided,
        )
