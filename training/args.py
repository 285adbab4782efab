"""The grouped arguments of the recipes, as they are written in a YAML file or on the command line."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared.domain.turn import MAX_CONTEXT_TURNS
from shared.modeling.fusion import FusionConfig
from shared.modeling.pretrained_encoders import PretrainedSpeechConfig, PretrainedTextConfig
from training.finetuning import Lora
from training.losses import LossConfig


class Args(BaseModel):
    """A group of arguments. Unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Branch(Args):
    """An encoder that trains together with the fusion. With `lora`, only the low-rank weights train."""

    freeze: int | Literal["all"] = 0
    """How many of the first layers do not train; everything before them does not train either."""
    lora: Lora | None = None
    """Low-rank adaptation of the encoder."""
    recompute: bool = False
    """Compute the layers again in the backward pass: less memory, a third more time."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """The encoder's peak learning rate."""


class TextBranch(Branch):
    """The text encoder: a transformers checkpoint, or a folder that `build_encoders` or `train` wrote."""

    encoder: PretrainedTextConfig

    @model_validator(mode="after")
    def _context_is_served(self) -> Self:
        check_context_turns(self.encoder.context_turns)
        return self


class AudioBranch(Branch):
    """The audio encoder: a transformers checkpoint, or a folder that `build_encoders` or `train` wrote."""

    encoder: PretrainedSpeechConfig
    freeze_cnn: bool = True
    """Do not train the convolutions in front of the layers."""
    seconds: tuple[float, float] | None = None
    """The shortest and the longest clip to use, in seconds; other clips are left out. None uses all."""


class ModelArgs(Args):
    """The model: its encoders, if they train too, its fusion and its loss."""

    text: TextBranch | None = None
    """Without a cache: the text encoder, which trains too. None reads no text."""
    audio: AudioBranch | None = None
    """Without a cache: the audio encoder, which trains too. None reads no audio."""
    fusion: FusionConfig = FusionConfig()
    """The fusion's kind and shapes; `train` sets the shapes that follow from the encoders and the labels."""
    loss: LossConfig = LossConfig(label_smoothing=0.05)
    """The loss of a batch."""

    @property
    def trains_encoders(self) -> bool:
        """Whether encoders train together with the fusion; otherwise the fusion reads cached features."""
        return self.text is not None or self.audio is not None


class BatchArgs(Args):
    """What a batch is made of."""

    audio: int = Field(default=32, ge=1)
    """Utterances with audio in a batch."""
    text: int = Field(default=64, ge=1)
    """Utterances with text alone in a batch."""
    corpus_weights: Mapping[str, float] | None = None
    """How often each corpus is drawn, relative to the others of the same modality; 1 if it is not named. None draws
    every utterance once an epoch."""
    own_text: float = Field(default=0.35, ge=0, le=1)
    """Share of the utterances with audio that keep their own text. At 1, no epoch is chosen by audio alone."""
    matching_text: float = Field(default=0.25, ge=0, le=1)
    """Share of the utterances with audio that get a text of the same emotion from a corpus of texts."""
    neutral_text: float = Field(default=0.0, ge=0, le=1)
    """Share of the utterances with audio that get a neutral text from a corpus of texts, whatever their emotion."""
    earlier_turns: tuple[int, ...] = (0, 0, 0, 1, 2, 3, 5, 8, 12, 16, 20)
    """How many other utterances of the speaker make up the baseline; each batch draws one of these numbers."""


class AugmentationArgs(Args):
    """How the training data is varied."""

    kinds: tuple[str, ...] = ("speed", "noise", "telephone")
    """Augmentations of the audio; one of them is applied to half of the utterances with audio."""
    dropped_spans: float = Field(default=0.3, ge=0, le=1)
    """The longest of the two spans that are left out of every clip, as a share of the clip."""
    masked_bands: float = Field(default=0.0, ge=0, le=1)
    """The widest of the two bands of cached features that are held at the clip's mean, as a share of all features
    (the other half of SpecAugment, Park et al. 2019). 0 masks none."""
    mixup: float = Field(default=0.3, ge=0)
    """The Beta distribution's parameter for mixing the audio of two utterances; 0 mixes none. See `Batch.mixed`."""


class OptimizerArgs(Args):
    """AdamW and its learning-rate schedule."""

    learning_rate: float = Field(default=5e-4, gt=0)
    """The fusion's peak learning rate; encoders that train have their own."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rates fall after the warm-up."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of all steps in which the learning rates rise."""
    weight_decay: float = Field(default=0.05, ge=0)
    """AdamW's weight decay."""


class TrainerArgs(Args):
    """How long to train, and on what."""

    epochs: int = Field(default=10, ge=1)
    """The largest number of epochs."""
    patience: int = Field(default=4, ge=1)
    """Epochs without a better validation score after which training stops."""
    steps_per_epoch: int | None = None
    """Batches between two validations. None is as many as it takes to draw every utterance with audio once, or every
    text if there is no audio."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are added up before a step."""
    seed: int = 0
    """The seed of the weights and of everything that is drawn."""
    precision: str = "32-true"
    """Lightning's precision, such as bf16-mixed."""
    accelerator: str = "auto"
    """Lightning's accelerator, such as cpu or gpu."""
    resume: bool = False
    """Continue from the last checkpoint in the output folder, if there is one."""


class FoldArgs(Args):
    """One fold of a cross-validation over speakers.

    The fold is kept for testing: nothing is chosen by it, and all epochs are trained.
    """

    index: int = Field(ge=0)
    """Which fold is kept for testing, from 0 to `count` - 1."""
    count: int = Field(default=5, ge=2)
    """How many folds there are."""


def check_context_turns(count: int) -> None:
    """Check that serving can give a text this many preceding turns.

    Raises:
        ValueError: it cannot; the message names the number and the limit.
    """
    if count > MAX_CONTEXT_TURNS:
        raise ValueError(
            f"context_turns is {count}, but serving gives a text at most {MAX_CONTEXT_TURNS} preceding turns: the "
            "model would read less context in service than in training"
        )
