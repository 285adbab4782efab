"""A residual network that reads spectrograms, one phase of its training at a time."""

from typing import Self

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ResNetModel


class LitResNet(lightning.LightningModule):
    """Trains a head on the pooled features of a body, and the body with it unless that is frozen.

    Args:
        body: reads pictures of shape [count, channels, height, width].
        head: from the body's width to classes.
        learning_rate: Adam's.
        dropout: of the pooled features.
        frozen: the body stays as it is, its batch norms' statistics too.
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
        self.train()  # Lightning leaves the modes as it finds them

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self._frozen:
            self.body.eval()
        return self

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits of shape [count, classes]."""
        return self.head(self._dropout(self.body(pictures).pooler_output.flatten(1)))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        pictures, classes = batch
        loss = functional.cross_entropy(self(pictures), classes)
        self.log("train/loss", loss, prog_bar=True, on_step=False, on_epoch=True)
        return loss

    def predict_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return self(batch[0]).argmax(dim=1)

    def configure_optimizers(self) -> torch.optim.Adam:
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=self._learning_rate)
