"""A model bundle: everything that must be the same wherever a prediction is made."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

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


class Calibration(BaseModel):
    """Temperatures that divide the logits, and the confidence below which Tenor abstains.

    Temperature scaling: Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=1.0, gt=0)
    text_temperature: float = Field(default=1.0, gt=0)
    audio_temperature: float = Field(default=1.0, gt=0)
    abstain_below: float = Field(default=0.0, ge=0, le=1)

    def temperature_of(self, *, text: bool, voice: bool) -> float:
        """The one for a reading of words, of a voice, or of both."""
        if text and voice:
            return self.temperature
        return self.text_temperature if text else self.audio_temperature


class ModelBundle(BaseModel):
    """The manifest, `bundle.yaml`, of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    label_space: LabelSpace
    asr: Component
    text_encoder: Component
    speech_encoder: Component
    fusion: Component
    calibration: Calibration
    metrics: dict[str, Any]
    training_data: list[dict[str, str]]
    licence: str

    @property
    def components(self) -> tuple[Component, ...]:
        return (self.asr, self.text_encoder, self.speech_encoder, self.fusion)

    @property
    def id(self) -> str:
        """Name and digest: two bundles that predict differently never share an id.

        What another Whisper in TENOR_WHISPER_DIR changes is not seen.
        """
        parts = {"label_space", "asr", "text_encoder", "speech_encoder", "fusion", "calibration"}
        decisive = json.dumps(self.model_dump(mode="json", include=parts), sort_keys=True)
        return f"{self.name}-{hashlib.sha256(decisive.encode()).hexdigest()[:12]}"
