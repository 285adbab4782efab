"""A model bundle: everything that must be the same wherever a prediction is made."""

import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared.domain.emotion import LabelSpace


class Component(BaseModel):
    """One model of the bundle: a file or folder beside the manifest, or a hub repository at a revision.

    `files` maps file names, relative to the manifest, to their sha256. `options` are the arguments of the component's
    class, checked there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    source: str = Field(description="where the weights come from: repo@revision")
    licence: str
    files: dict[str, str] = {}
    options: dict[str, Any] = {}


class OperatingPoint(BaseModel):
    """If Tenor abstained below `threshold`: the share that is answered, and the share of that which is right."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(ge=0, le=1)
    coverage: float = Field(ge=0, le=1)
    accuracy: float = Field(ge=0, le=1)


class Calibration(BaseModel):
    """Temperatures that divide the logits, and the confidence below which Tenor abstains.

    Temperature scaling: Guo et al. 2017, "On Calibration of Modern Neural Networks". The threshold promises that, with
    probability `risk_level`, no more than `accepted_risk` of the answers are wrong (Geifman and El-Yaniv 2017,
    "Selective Classification for Deep Neural Networks") on data like the validation data, of which `coverage` were
    answered. `accepted_risk` is None where nothing is promised.
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

    def temperature_of(self, *, text: bool, voice: bool) -> float:
        """The one for a reading of words, of a voice, or of both."""
        if text and voice:
            return self.temperature
        return self.text_temperature if text else self.audio_temperature


DECISIVE = {"temperature", "text_temperature", "audio_temperature", "abstain_below"}
"""What of a calibration decides a prediction."""


class ModelBundle(BaseModel):
    """The manifest, `bundle.yaml`, of a bundle.

    Words and voice are read by two encoders and a fusion, or the voice alone by a classifier, which knows no
    dimensions.
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
    calibration: Calibration
    metrics: dict[str, Any]
    training_data: list[dict[str, str]]
    licence: str

    @model_validator(mode="after")
    def _reads_in_one_way(self) -> Self:
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
        """Name and digest: two bundles that predict differently never share an id.

        In which precision and on which device a bundle is run is not seen.
        """
        parts: Any = {"label_space": True, **dict.fromkeys(self._models, True), "calibration": DECISIVE}
        decisive = json.dumps(self.model_dump(mode="json", include=parts), sort_keys=True)
        return f"{self.name}-{hashlib.sha256(decisive.encode()).hexdigest()[:12]}"
