"""What Tenor says about a turn: label spaces, scores and readings."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
