"""Predictions: the emotion of a turn, by the models of a bundle."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, computed_field

from shared.domain.emotion import EmotionScores, Modality, Probability, Valence
from shared.domain.warning import AnalysisWarning


class AbstentionReason(StrEnum):
    """Why a prediction names no emotion.

    Attributes:
        no_speech: nobody speaks in the audio, and there is no text.
        no_letters: the text has neither letters nor digits.
        unread_script: the text encoder knows too few characters of the text's script.
        too_uncertain: the confidence is below the bundle's threshold, or the transcript is too doubtful to be read.
    """

    no_speech = "no_speech"
    no_letters = "no_letters"
    unread_script = "unread_script"
    too_uncertain = "too_uncertain"


class Prediction(BaseModel):
    """The models' result for one turn.

    Attributes:
        scores: None where the turn has no input for the models: silence, noise, or a script that no encoder knows.
        text_only: the scores from text alone, None without text.
        audio_only: the scores from audio alone, None without speech.
        abstained: whether Tenor names no emotion, because there are no scores or the confidence is below the bundle's
            threshold.
        incongruence: the Jensen-Shannon distance, in [0, 1], between the text-only and the audio-only categories; None
            without both.
    """

    model_config = ConfigDict(frozen=True)

    scores: EmotionScores | None
    text_only: EmotionScores | None
    audio_only: EmotionScores | None
    confidence: Probability
    abstained: bool
    incongruence: Probability | None
    modalities_used: tuple[Modality, ...]
    baseline_turns: int = Field(
        default=0, ge=0, description="how many earlier turns of the speaker are the baseline of its audio"
    )
    context_turns: int = Field(
        default=0, ge=0, description="how many turns before, of any speaker, were read together with its text"
    )
    reason: AbstentionReason | None = Field(default=None, description="why `emotion` is null; null if it is not")
    level_dbfs: float | None = Field(
        default=None,
        description="the RMS level that the loudest 0.25 s of the audio reach, in dB relative to an amplitude of 1; "
        "-120 for digital silence, null without audio",
    )
    warnings: tuple[AnalysisWarning, ...] = Field(
        default=(), description="what a client should know about the analysis, such as seconds that were skipped"
    )

    @computed_field
    @property
    def emotion(self) -> str | None:
        """The most probable category; None where Tenor abstained."""
        return None if self.abstained or self.scores is None else self.scores.top

    @computed_field
    @property
    def valence(self) -> float | None:
        """The valence from -1, unpleasant, to 1, pleasant."""
        return None if self.scores is None else self.scores.dimensions.get("valence")

    @computed_field
    @property
    def valence_label(self) -> Valence | None:
        """The valence as `negative`, `neutral` or `positive`."""
        return None if self.valence is None else Valence.of(self.valence)


class StoredPrediction(Prediction):
    """A stored prediction with its ids. It is unique for a turn and a bundle."""

    id: UUID
    turn_id: UUID
    bundle_id: str
    created_at: datetime
