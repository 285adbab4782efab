"""The fusion, and the encoders where they learn too, as a Lightning module: losses, optimiser, validation."""

from collections.abc import Sequence

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from transformers import get_scheduler

from shared.modeling.baseline import summarize_audio
from shared.modeling.fusion import FusionConfig, FusionOutput, build_fusion
from training.branches import Branches
from training.data.dataset import Batch, Speakers, Unencoded
from training.losses import Loss
from training.metrics import metrics


class LitFusion(lightning.LightningModule):
    """Trains a fusion on cached features, or together with its encoders.

    Args:
        config: the fusion's shapes.
        branches: the encoders that learn; None where features are cached.
        loss: of a batch.
        categories: names of the model's outputs.
        learning_rate: the fusion's highest.
        schedule: how the learning rates fall after they rose, `cosine` or `linear`.
        warmup: share of all steps that the learning rates take to rise.
        weight_decay: AdamW's.
        mixup: how much voices are mixed, see `Batch.mixed`.
        views: names of the validation sets, in the order of their loaders.
        speakers: keeps the summaries of the voices that encoders which learn make, for the baselines.
    """

    def __init__(
        self,
        config: FusionConfig,
        branches: Branches | None,
        loss: Loss,
        categories: Sequence[str],
        learning_rate: float,
        schedule: str,
        warmup: float,
        weight_decay: float,
        mixup: float,
        views: list[str],
        speakers: Speakers | None = None,
    ) -> None:
        super().__init__()
        self.fusion = build_fusion(config)
        self.branches = branches
        self._loss = loss
        self._categories = categories
        self._learning_rate, self._weight_decay = learning_rate, weight_decay
        self._schedule, self._warmup = schedule, warmup
        self._mixup = mixup
        self._views = views
        self._speakers = speakers
        self._outputs: dict[str, list[tuple[list[int], np.ndarray]]] = {}

    def forward(self, batch: Batch | Unencoded) -> FusionOutput:
        batch = self.encoded(batch)
        return self.fusion(batch.text, batch.voice, batch.baseline)

    def encoded(self, batch: Batch | Unencoded) -> Batch:
        """The batch with features in place of words and sound."""
        if isinstance(batch, Batch):
            return batch
        assert self.branches is not None
        return self.branches(batch, self.fusion.config).to(self.device)

    def training_step(self, batches: tuple[Batch | Unencoded, ...], index: int) -> Tensor:
        """The mean loss over all utterances of the step's batches."""
        losses, count = [], 0
        for batch in batches:
            encoded = self.encoded(batch)
            if isinstance(batch, Unencoded):
                self._remember(batch, encoded)
            mixed = encoded.mixed(self._mixup)
            fused = self.fusion(mixed.text, mixed.voice, mixed.baseline)
            losses.append(self._loss(fused, mixed.target, mixed.valence) * len(mixed.utterances))
            count += len(mixed.utterances)
        loss = torch.stack(losses).sum() / count
        self.log("train/loss", loss, prog_bar=True, batch_size=count)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._outputs = {view: [] for view in self._views}

    def validation_step(self, batch: Batch | Unencoded, index: int, dataloader_idx: int = 0) -> None:
        encoded = self.encoded(batch)
        logits = self.fusion(encoded.text, encoded.voice, encoded.baseline).logits
        probabilities = torch.softmax(logits.float(), dim=-1).cpu().numpy()
        labels = [utterance.label for utterance in encoded.utterances]
        self._outputs[self._views[dataloader_idx]].append((labels, probabilities))

    def on_validation_epoch_end(self) -> None:
        """Logs every view's weighted F1 and UAR, and `val/score`, the mean of the weighted F1 and UAR of all views."""
        scores = []
        for view, outputs in self._outputs.items():
            labels = [i for labels, _ in outputs for i in labels]
            found = metrics(labels, np.concatenate([p for _, p in outputs]), self._categories)
            self.log(f"val/{view}/weighted_f1", found.weighted_f1)
            self.log(f"val/{view}/uar", found.uar)
            scores.append((found.weighted_f1 + found.uar) / 2)
        self.log("val/score", float(np.mean(scores)), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        groups = [{"params": list(self.fusion.parameters()), "lr": self._learning_rate}]
        groups += [] if self.branches is None else self.branches.groups()
        optimizer = torch.optim.AdamW(groups, weight_decay=self._weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_scheduler(self._schedule, optimizer, int(self._warmup * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _remember(self, batch: Unencoded, encoded: Batch) -> None:
        if self._speakers is not None and encoded.voice.mask.any():
            made = summarize_audio(encoded.voice).detach().half().cpu().numpy()
            for example, summary in zip(batch.examples, made, strict=True):
                self._speakers.renew(example.utterance, example.augmentation, summary)
