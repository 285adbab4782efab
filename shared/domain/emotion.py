"""What Tenor says about a turn: label spaces, scores and readings."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Modality(StrEnum):
    text = "text"
    audio = "audio"


class LabelSpace(BaseModel):
    """A named, ordered set of categories, and the dimensions that go with it."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int = 1
    categories: tuple[str, ...]
    dimensions: tuple[str, ...] = ()

    def index(self, category: str) -> int:
        """Position of `category` in the model's outputs.

        Raises:
            ValueError: the category is not one of this label space.
        """
        try:
            return self.categories.index(category)
        except ValueError:
            raise ValueError(
                f"{category!r} is not a category of {self.name}: use one of {', '.join(self.categories)}"
            ) from None


EKMAN7 = LabelSpace(
    name="ekman7",
    categories=("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"),
    dimensions=("valence",),
)
"""Ekman's six basic emotions and neutral, with valence in [-1, 1]."""


class Valence(StrEnum):
    """The three-way reading of the valence dimension."""

    negative = "negative"
    neutral = "neutral"
    positive = "positive"

    @classmethod
    def of(cls, value: float) -> "Valence":
        """Read a value in [-1, 1] with equal thirds: below -1/3, up to 1/3, above."""
        if value < -1 / 3:
            return cls.negative
        return cls.positive if value > 1 / 3 else cls.neutral


class EmotionScores(BaseModel):
    """One probability per category (they sum to 1) and one value per dimension."""

    model_config = ConfigDict(frozen=True)

    label_space: str
    categories: dict[str, Probability]
    dimensions: dict[str, float] = {}

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = sum(self.categories.values())
        if abs(total - 1.0) > 1e-3:
            raise ValueError(f"the probabilities of {self.label_space} sum to {total:.4f}, not to 1")
        return self

    @property
    def top(self) -> str:
        """The most probable category; the first in order on a tie."""
        return max(self.categories, key=self.categories.__getitem__)


class Reading(BaseModel):
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


class Prediction(Reading):
    """A reading by one bundle, as stored: unique per (turn, bundle)."""

    id: UUID
    turn_id: UUID
    bundle_id: str
    created_at: datetime
