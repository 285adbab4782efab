"""Predictions: the emotion of one turn, as a model bundle predicts it."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, computed_field

from shared.domain.emotion import EmotionScores, Modality, Probability, Valence


class Prediction(BaseModel):
    """What the models make of one turn.

    `scores` is None where there was nothing to read (silence, noise, a script that no encoder knows).
    `abstained` means that Tenor declines to name an emotion: nothing to read, or a confidence below the
    bundle's threshold. `incongruence` is the Jensen-Shannon distance, in [0, 1], between the words' and the
    voice's categories, and None unless both were read. `baseline_turns` is how many of the speaker's earlier
    turns the voice was read against.
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
        default=0, ge=0, description="how many of the speaker's earlier turns the voice was read against"
    )

    @computed_field
    @property
    def emotion(self) -> str | None:
        """The most probable category, None where Tenor abstained."""
        return None if self.abstained or self.scores is None else self.scores.top

    @computed_field
    @property
    def valence(self) -> float | None:
        """From -1, unpleasant, to 1, pleasant."""
        return None if self.scores is None else self.scores.dimensions.get("valence")

    @computed_field
    @property
    def valence_label(self) -> Valence | None:
        return None if self.valence is None else Valence.of(self.valence)


class StoredPrediction(Prediction):
    """A reading by one bundle, as stored: unique per (turn, bundle)."""

    id: UUID
    turn_id: UUID
    bundle_id: str
    created_at: datetime
