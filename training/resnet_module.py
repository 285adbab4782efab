"""The Lightning module for one phase of training a residual network on spectrograms."""

from typing import Self

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ResNetModel


class ResNetModule(lightning.LightningModule):
    """Trains a head on the pooled features of a body, and the body too unless it is frozen.

    Args:
        body: takes images of shape [count, channels, height, width].
        head: maps the body's width to classes.
        learning_rate: Adam's learning rate.
        dropout: dropout of the pooled features.
        frozen: do not train the body; the statistics of its batch norms do not change either.
    """

    def __init__(
        self, body: ResNetModel, head: nn.Linear, learning_rate: float, dropout: float, *, frozen: bool = False
    ) -> None:
        super().__init__()
        self.body = body.requires_grad_(not frozen)
        self.head = head
        self._dropout = nn.Dropout(dropout)
        self._learning_rate = learning_rate
        self._frozen = frozen
        self.train()  # Lightning does not change the mode of a module

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; a frozen body stays in evaluation mode."""
        super().train(mode)
        if self._frozen:
            self.body.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits of shape [count, classes]."""
        return self.head(self._dropout(self.body(images).pooler_output.flatten(1)))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, classes = batch
        loss = functional.cross_entropy(self(images), classes)
        self.log("train/loss", loss, prog_bar=True, on_step=False, on_epoch=True)
        return loss

    def predict_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Returns the predicted classes."""
        return self(batch[0]).argmax(dim=1)

    def configure_optimizers(self) -> torch.optim.Adam:
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=self._learning_rate)
