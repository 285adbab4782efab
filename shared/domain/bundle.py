"""Model bundles: the models, label space and calibration that a prediction depends on."""

import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared.domain.emotion import LabelSpace


class Component(BaseModel):
    """One model of the bundle: files beside the manifest, or a hub repository at a revision.

    Attributes:
        files: file names, relative to the manifest, with their SHA-256 in hex.
        options: the arguments of the component's class, which checks them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    source: str = Field(description="where the weights come from: repo@revision")
    licence: str
    files: dict[str, str] = {}
    options: dict[str, Any] = {}


class OperatingPoint(BaseModel):
    """The share of turns that are answered with this threshold, and the share of these answers that are right."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(ge=0, le=1)
    coverage: float = Field(ge=0, le=1)
    accuracy: float = Field(ge=0, le=1)


class Calibration(BaseModel):
    """Temperatures that divide the logits, and the confidence below which Tenor abstains.

    Temperature scaling: Guo et al. 2017, "On Calibration of Modern Neural Networks". The threshold promises that, with
    probability `risk_level`, no more than `accepted_risk` of the answers are wrong (Geifman and El-Yaniv 2017,
    "Selective Classification for Deep Neural Networks") on data like the validation data, of which the share `coverage`
    was answered. `accepted_risk` is None where nothing is promised.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=1.0, gt=0)
    text_temperature: float = Field(default=1.0, gt=0)
    audio_temperature: float = Field(default=1.0, gt=0)
    abstain_below: float = Field(default=0.0, ge=0, le=1)
    accepted_risk: float | None = Field(default=None, gt=0, le=1)
    risk_level: float = Field(default=0.95, gt=0, lt=1)
    coverage: float | None = Field(default=None, ge=0, le=1)
    selective_accuracy: tuple[OperatingPoint, ...] = ()

    def temperature_of(self, *, text: bool, audio: bool) -> float:
        """Return the temperature for logits from text, from audio, or from both."""
        if text and audio:
            return self.temperature
        return self.text_temperature if text else self.audio_temperature


PREDICTIVE_FIELDS = {"temperature", "text_temperature", "audio_temperature", "abstain_below"}
"""The fields of a calibration that change predictions."""


class ModelBundle(BaseModel):
    """The manifest, `bundle.yaml`, of a bundle.

    Either two encoders and a fusion take text and audio, or a classifier takes audio alone. A classifier predicts no
    dimensions.

    Attributes:
        context_turns: how many turns before a turn are read as its context, at most as many as the text encoder was
            trained with. 0 unless it was measured that context leaves clear turns right.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    label_space: LabelSpace
    asr: Component
    text_encoder: Component | None = None
    speech_encoder: Component | None = None
    fusion: Component | None = None
    classifier: Component | None = None
    context_turns: int = Field(default=0, ge=0)
    calibration: Calibration
    metrics: dict[str, Any]
    training_data: list[dict[str, str]]
    licence: str

    @model_validator(mode="after")
    def _has_one_kind_of_models(self) -> Self:
        if self._models.keys() - {"asr"} not in ({"text_encoder", "speech_encoder", "fusion"}, {"classifier"}):
            raise ValueError("a bundle has either text_encoder, speech_encoder and fusion, or a classifier")
        if self.classifier is not None and self.label_space.dimensions:
            raise ValueError(f"a classifier gives categories only, not {', '.join(self.label_space.dimensions)}")
        return self

    @property
    def _models(self) -> dict[str, Component]:
        named = {
            "asr": self.asr,
            "text_encoder": self.text_encoder,
            "speech_encoder": self.speech_encoder,
            "fusion": self.fusion,
            "classifier": self.classifier,
        }
        return {name: component for name, component in named.items() if component is not None}

    @property
    def components(self) -> tuple[Component, ...]:
        return tuple(self._models.values())

    @property
    def id(self) -> str:
        """The name with a digest of all that changes predictions: bundles that predict differently have different ids.

        Precision and device of a run are not part of the digest.
        """
        fields = ("label_space", "context_turns", *self._models)
        included: Any = {**dict.fromkeys(fields, True), "calibration": PREDICTIVE_FIELDS}
        predictive = json.dumps(self.model_dump(mode="json", include=included), sort_keys=True)
        return f"{self.name}-{hashlib.sha256(predictive.encode()).hexdigest()[:12]}"
