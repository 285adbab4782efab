"""Emotions: label spaces, scores and the three-way valence."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Modality(StrEnum):
    """What a prediction is made from."""

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
        """Return the position of a category in the model's outputs.

        Raises:
            ValueError: it is not a category of this label space.
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
    """The valence dimension in three classes."""

    negative = "negative"
    neutral = "neutral"
    positive = "positive"

    @classmethod
    def of(cls, value: float) -> "Valence":
        """Return the class of a value in [-1, 1]: below -1/3, up to 1/3, or above."""
        if value < -1 / 3:
            return cls.negative
        return cls.positive if value > 1 / 3 else cls.neutral


class EmotionScores(BaseModel):
    """A probability for each category, which sum to 1, and a value for each dimension."""

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
        """The most probable category; of several, the first in order."""
        return max(self.categories, key=self.categories.__getitem__)
