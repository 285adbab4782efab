"""The Lightning module that trains a fusion: loss, optimizer and validation."""

from collections.abc import Sequence
from typing import cast

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler  # pyright: ignore[reportUnknownVariableType] - its dict is bare

from shared.modeling.baseline import summarize_audio
from shared.modeling.fusion import FusionConfig, FusionOutput, build_fusion
from training.args import OptimizerArgs
from training.data.examples import Batch, UnencodedBatch
from training.data.speaker_summaries import SpeakerSummaries
from training.encoder_branches import EncoderBranches
from training.losses import Loss
from training.metrics import metrics


class FusionModule(lightning.LightningModule):
    """Trains a fusion on cached features, or together with its encoders.

    Args:
        config: the fusion's kind and shapes.
        branches: the encoders that train; None if features are cached.
        loss: the loss of a batch.
        categories: the names of the model's outputs.
        optimizer: the optimizer and its schedule.
        mixup: see `Batch.mixed`.
        views: the names of the validation sets, in the order of their loaders.
        speakers: the summaries to update while encoders train; None if no baseline is used or features are cached.
    """

    def __init__(
        self,
        config: FusionConfig,
        branches: EncoderBranches | None,
        loss: Loss,
        categories: Sequence[str],
        optimizer: OptimizerArgs,
        mixup: float,
        views: Sequence[str],
        speakers: SpeakerSummaries | None = None,
    ) -> None:
        super().__init__()
        self.fusion = build_fusion(config)
        self.branches = branches
        self._loss = loss
        self._categories = categories
        self._optimizer = optimizer
        self._mixup = mixup
        self._views = views
        self._speakers = speakers
        self._outputs: dict[str, list[tuple[list[int], np.ndarray]]] = {}

    def forward(self, batch: Batch | UnencodedBatch) -> FusionOutput:
        """Returns the logits and valences of a batch."""
        encoded = self.encode(batch)
        return self.fusion(encoded.text, encoded.audio, encoded.baseline)

    def encode(self, batch: Batch | UnencodedBatch) -> Batch:
        """Returns the batch with features in place of texts and samples."""
        if isinstance(batch, Batch):
            return batch
        assert self.branches is not None
        encoded: Batch = self.branches(batch, self.fusion.config)
        return encoded.to(self.device)

    def training_step(self, batches: tuple[Batch | UnencodedBatch, ...], index: int) -> Tensor:
        """Returns the mean loss over all utterances of the step's batches."""
        losses: list[Tensor] = []
        count = 0
        for batch in batches:
            encoded = self.encode(batch)
            if isinstance(batch, UnencodedBatch):
                self._update_summaries(batch, encoded)
            mixed = encoded.mixed(self._mixup)
            fused = self.fusion(mixed.text, mixed.audio, mixed.baseline)
            losses.append(self._loss(fused, mixed.target, mixed.valence) * len(mixed.utterances))
            count += len(mixed.utterances)
        loss = torch.stack(losses).sum() / count
        self.log("train/loss", loss, prog_bar=True, batch_size=count)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._outputs = {view: [] for view in self._views}

    def validation_step(self, batch: Batch | UnencodedBatch, index: int, dataloader_idx: int = 0) -> None:
        encoded = self.encode(batch)
        logits = self.fusion(encoded.text, encoded.audio, encoded.baseline).logits
        probabilities = torch.softmax(logits.float(), dim=-1).cpu().numpy()
        labels = [utterance.label for utterance in encoded.utterances]
        self._outputs[self._views[dataloader_idx]].append((labels, probabilities))

    def on_validation_epoch_end(self) -> None:
        """Log every view's weighted F1 and UAR, and `val/score`, the mean of both over all views."""
        scores: list[float] = []
        for view, outputs in self._outputs.items():
            labels = [i for labels, _ in outputs for i in labels]
            found = metrics(labels, np.concatenate([p for _, p in outputs]), self._categories)
            self.log(f"val/{view}/weighted_f1", found.weighted_f1)
            self.log(f"val/{view}/uar", found.uar)
            scores.append((found.weighted_f1 + found.uar) / 2)
        self.log("val/score", float(np.mean(scores)), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        args = self._optimizer
        groups = [{"params": list(self.fusion.parameters()), "lr": args.learning_rate}]
        groups += [] if self.branches is None else self.branches.parameter_groups()
        optimizer = torch.optim.AdamW(groups, weight_decay=args.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = cast("LRScheduler", get_scheduler(args.schedule, optimizer, int(args.warmup * steps), steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _update_summaries(self, batch: UnencodedBatch, encoded: Batch) -> None:
        if self._speakers is not None and encoded.audio.mask.any():
            computed = summarize_audio(encoded.audio).detach().half().cpu().numpy()
            for example, summary in zip(batch.examples, computed, strict=True):
                self._speakers.update(example.utterance, example.augmentation, summary)
