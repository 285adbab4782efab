"""Transcripts: the text of a turn, with the times of its words."""

import math
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

MIN_LANGUAGE_PROBABILITY = 0.7
"""A language that is detected with a lower probability is doubtful."""
DOUBTFUL_BELOW = 0.5
"""The confidence below which a transcript is trusted less. faster-whisper asks again for a language below it."""
WORTHLESS_BELOW = 0.25
"""The confidence below which a transcript is not trusted at all: nearly all of its words are wrong."""


class TranscriptSource(StrEnum):
    """Where a transcript comes from: speech recognition (`asr`), or the request (`provided`)."""

    asr = "asr"
    provided = "provided"


class Word(BaseModel):
    """A word; times in seconds within the recording."""

    model_config = ConfigDict(frozen=True)

    start: float
    end: float
    text: str
    probability: float


class Segment(BaseModel):
    """A stretch of speech; times in seconds within the recording.

    Attributes:
        language: an ISO 639 code, if it is another language than the transcript's.
    """

    model_config = ConfigDict(frozen=True)

    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()
    language: str | None = None


class Transcript(BaseModel):
    """The text of a turn in segments. No segments mean that no speech was found.

    Attributes:
        language: an ISO 639 code, or the BCP 47 tag that came with provided text; None if unknown.
        language_probability: None for provided text.
    """

    model_config = ConfigDict(frozen=True)

    language: str | None
    language_probability: float | None
    segments: tuple[Segment, ...]
    source: TranscriptSource

    @property
    def certain_language(self) -> str | None:
        """The language, unless it is unknown or doubtful."""
        certain = self.language_probability is None or self.language_probability >= MIN_LANGUAGE_PROBABILITY
        return self.language if certain else None

    @property
    def text(self) -> str:
        """The text of all segments."""
        return " ".join(segment.text.strip() for segment in self.segments).strip()

    @property
    def confidence(self) -> float:
        """How sure speech recognition is, from 0 to 1; 1 for provided text.

        It is the product of the language's probability and the geometric mean of the words' probabilities, which is the
        exponential of their mean log-probability.
        """
        if self.source is TranscriptSource.provided:
            return 1.0
        logs = [math.log(max(word.probability, 1e-6)) for segment in self.segments for word in segment.words]
        words = math.exp(sum(logs) / len(logs)) if logs else 1.0
        return words * (1.0 if self.language_probability is None else self.language_probability)

    @property
    def text_weight(self) -> float:
        """How far the text is trusted beside the audio: 1 from `DOUBTFUL_BELOW` on, 0 at `WORTHLESS_BELOW`, between
        them in proportion to the confidence.
        """
        share = (self.confidence - WORTHLESS_BELOW) / (DOUBTFUL_BELOW - WORTHLESS_BELOW)
        return min(1.0, max(0.0, share))

    def later(self, seconds: float) -> "Transcript":
        """Return the transcript with all times later by some seconds."""
        if not seconds:
            return self
        return self.model_copy(update={"segments": tuple(_later(segment, seconds) for segment in self.segments)})

    @classmethod
    def provided(cls, text: str, language: str | None = None) -> "Transcript":
        """Return the transcript of a turn that came with its text."""
        return cls(
            language=language,
            language_probability=None,
            segments=(Segment(start=0.0, end=0.0, text=text),),
            source=TranscriptSource.provided,
        )


def _later(segment: Segment, seconds: float) -> Segment:
    def shift(part: Segment | Word) -> dict[str, float]:
        return {"start": part.start + seconds, "end": part.end + seconds}

    words = tuple(word.model_copy(update=shift(word)) for word in segment.words)
    return segment.model_copy(update=shift(segment) | {"words": words})
