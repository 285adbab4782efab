"""The fusion as a Lightning module: its losses, its optimiser, its validation."""

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from shared.modeling.fusion import CrossAttentionFusion, Fused, FusionConfig
from training.data.dataset import Batch
from training.metrics import metrics


class LitFusion(lightning.LightningModule):
    """Trains a fusion on cached features.

    Args:
        config: the fusion's shapes.
        learning_rate: the highest of a one-cycle schedule.
        weight_decay: AdamW's.
        label_smoothing: share of the target spread over all categories.
        valence_weight: weight of the squared error of the valence beside the cross-entropy.
        mixup: how much voices are mixed, see `Batch.mixed`.
        views: names of the validation sets, in the order of their loaders.
    """

    def __init__(
        self,
        config: FusionConfig,
        learning_rate: float,
        weight_decay: float,
        label_smoothing: float,
        valence_weight: float,
        mixup: float,
        views: list[str],
    ) -> None:
        super().__init__()
        self.fusion = CrossAttentionFusion(config)
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay
        self._label_smoothing = label_smoothing
        self._valence_weight = valence_weight
        self._mixup = mixup
        self._views = views
        self._outputs: dict[str, list[tuple[list[int], np.ndarray]]] = {}

    def forward(self, batch: Batch) -> Fused:
        return self.fusion(batch.text, batch.voice)

    def training_step(self, batches: tuple[Batch, ...], index: int) -> Tensor:
        """The mean loss over all utterances of the step's batches."""
        count = sum(len(batch.utterances) for batch in batches)
        batches = tuple(batch.mixed(self._mixup) for batch in batches)
        loss = torch.stack([self._loss(self(batch), batch) * len(batch.utterances) for batch in batches]).sum() / count
        self.log("train/loss", loss, prog_bar=True, batch_size=count)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._outputs = {view: [] for view in self._views}

    def validation_step(self, batch: Batch, index: int, dataloader_idx: int = 0) -> None:
        probabilities = torch.softmax(self(batch).logits, dim=-1).cpu().numpy()
        labels = [utterance.label for utterance in batch.utterances]
        self._outputs[self._views[dataloader_idx]].append((labels, probabilities))

    def on_validation_epoch_end(self) -> None:
        """Logs every view's weighted F1 and UAR, and `val/score`, the mean of the weighted F1 and UAR of all views."""
        scores = []
        for view, outputs in self._outputs.items():
            found = metrics([i for labels, _ in outputs for i in labels], np.concatenate([p for _, p in outputs]))
            self.log(f"val/{view}/weighted_f1", found.weighted_f1)
            self.log(f"val/{view}/uar", found.uar)
            scores.append((found.weighted_f1 + found.uar) / 2)
        self.log("val/score", float(np.mean(scores)), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self._learning_rate, weight_decay=self._weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = OneCycleLR(optimizer, self._learning_rate, total_steps=steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _loss(self, fused: Fused, batch: Batch) -> Tensor:
        emotion = functional.cross_entropy(fused.logits, batch.target, label_smoothing=self._label_smoothing)
        known = ~batch.valence.isnan()
        if not known.any():
            return emotion
        return emotion + self._valence_weight * functional.mse_loss(fused.valence[known], batch.valence[known])
