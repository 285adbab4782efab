"""Train a residual network on one corpus's spectrograms, then on another's, as Durrani and Arshad 2021 do.

"Transfer Learning based Speech Affect Recognition in Urdu", https://arxiv.org/abs/2103.03580.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from pydantic import BaseModel
from rich.progress import track
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import ResNetConfig, ResNetModel

from shared.audio import decode
from training.data.registry import load
from training.data.spectrogram import picture
from training.data.splits import Folding, folds, groups_of
from training.data.utterance import Utterance
from training.metrics import Scores, scores
from training.resnet_module import LitResNet


class Phase(BaseModel):
    """A phase of the training, and its scores on the test clips of its corpus in the end."""

    corpus: str
    epochs: int
    learning_rate: float
    frozen: bool = False
    """Only the last layer is trained."""
    scores: Scores | None = None


class Report(BaseModel):
    """What was trained on and tested; `speakers_in_both` counts the target's speakers on both sides of the split.

    It is None where they are not known. The scores' confusion matrices are in the order of `labels`, each corpus's own.
    """

    split: Folding
    train_clips: int
    test_clips: int
    speakers_in_both: int | None
    labels: dict[str, list[str]]
    phases: dict[str, Phase]


@dataclass(frozen=True)
class Parts:
    """A corpus's clips as spectrograms and classes, those that train and those that test.

    Attributes:
        labels: the classes' names.
    """

    labels: list[str]
    train: TensorDataset
    test: TensorDataset
    speakers_in_both: int | None


def transfer(
    data: Path,
    out: Path,
    source: str,
    target: str = "urdu_latif",
    split: Folding = "random",
    folds: int = 5,
    source_epochs: int = 2,
    head_epochs: int = 10,
    whole_epochs: int = 100,
    source_learning_rate: float = 1e-4,
    learning_rate: float = 1e-4,
    batch_size: int = 25,
    dropout: float = 0.1,
    size: int = 224,
    depths: Sequence[int] = (3, 4, 6, 3),
    widths: Sequence[int] = (64, 128, 256, 512),
    seed: int = 0,
    precision: str = "32-true",
    accelerator: str = "auto",
    resume: bool = False,
) -> None:
    """Train on the source; freeze, and train a new last layer on the target; then train the whole on the target.

    Writes `resnet.safetensors`, `report.json`, and for each phase a folder with its last epoch and its losses as CSV.
    Nothing is chosen by the test clips: every phase ends with its last epoch.

    Args:
        data: holds the corpora.
        out: checkpoints, losses and the result.
        source: the corpus to learn from first.
        target: the corpus to learn in the end.
        split: which clips test: drawn at random, so that speakers are on both sides as in the publication, or of
            speakers never trained on; either way with equal shares of each label as far as can be.
        folds: one of so many parts tests.
        source_epochs: of the first phase; with 0 the network starts from random weights.
        head_epochs: of the second.
        whole_epochs: of the third.
        source_learning_rate: Adam's in the first phase.
        learning_rate: Adam's in the others.
        batch_size: clips a step.
        dropout: before the last layer.
        size: of the square spectrograms.
        depths: blocks of each stage; by default ResNet-34's (He et al. 2016, table 1).
        widths: channels of each stage.
        seed: of split, weights and draws.
        precision: Lightning's, such as bf16-mixed.
        accelerator: Lightning's.
        resume: go on from the last epoch of the phase in which `out` was left.

    Raises:
        CorpusMissing: a corpus is not there.
        ValueError: a corpus is not known, has clips without recordings, or is to be split by speakers that it does not
            name.
    """
    lightning.seed_everything(seed, workers=True)
    parts = {name: _parts(load(data, [name], scheme=None), size, split, folds, seed) for name in (source, target)}
    body = resnet(depths, widths)
    heads = {name: nn.Linear(widths[-1], len(part.labels)) for name, part in parts.items()}
    phases = {
        "source": Phase(corpus=source, epochs=source_epochs, learning_rate=source_learning_rate),
        "head": Phase(corpus=target, epochs=head_epochs, learning_rate=learning_rate, frozen=True),
        "whole": Phase(corpus=target, epochs=whole_epochs, learning_rate=learning_rate),
    }
    if not resume:
        for name in phases:
            (out / name / "last.ckpt").unlink(missing_ok=True)
    for name, phase in phases.items():
        part = parts[phase.corpus]
        # Body and heads go on from phase to phase; the optimizer begins anew.
        module = LitResNet(body, heads[phase.corpus], phase.learning_rate, dropout, frozen=phase.frozen)
        trainer = _trainer(out / name, phase.epochs, precision, accelerator)
        last = out / name / "last.ckpt"
        trainer.fit(
            module,
            DataLoader(part.train, batch_size, shuffle=True),
            ckpt_path=last if last.exists() else None,
            weights_only=True,
        )
        phase.scores = _scores(trainer, module, part, batch_size)
    whole = nn.ModuleDict({"body": body, "head": heads[target]})
    save_file(whole.state_dict(), out / "resnet.safetensors")
    report = Report(
        split=split,
        train_clips=len(parts[target].train),
        test_clips=len(parts[target].test),
        speakers_in_both=parts[target].speakers_in_both,
        labels={name: part.labels for name, part in parts.items()},
        phases=phases,
    )
    (out / "report.json").write_text(report.model_dump_json(indent=1))


def resnet(depths: Sequence[int], widths: Sequence[int]) -> ResNetModel:
    """A residual network of random weights without its last layer, for pictures of one channel."""
    config = ResNetConfig(
        num_channels=1, embedding_size=widths[0], hidden_sizes=list(widths), depths=list(depths), layer_type="basic"
    )
    return ResNetModel(config)


def _trainer(folder: Path, epochs: int, precision: str, accelerator: str) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs,
        precision=precision,  # pyright: ignore[reportArgumentType] - the values are Lightning's to check
        accelerator=accelerator,
        callbacks=[ModelCheckpoint(folder, filename="last", enable_version_counter=False), RichProgressBar()],
        logger=CSVLogger(folder, name="losses"),  # numbered, so that resuming deletes none
        log_every_n_steps=1,
    )


def _scores(trainer: lightning.Trainer, module: LitResNet, part: Parts, batch_size: int) -> Scores:
    batches = trainer.predict(module, DataLoader(part.test, batch_size))
    predicted = torch.cat([batch for batch in batches or [] if isinstance(batch, torch.Tensor)])
    return scores(part.test.tensors[1].numpy(), predicted.cpu().numpy(), part.labels)


def _parts(utterances: Sequence[Utterance], size: int, split: Folding, count: int, seed: int) -> Parts:
    labels, classes = np.unique([utterance.label_name for utterance in utterances], return_inverse=True)
    speakers = groups_of(utterances)
    train, test = next(folds(classes, speakers, split, count, seed))
    pictures = torch.stack([_picture(utterance, size) for utterance in track(utterances, utterances[0].corpus)])
    everything = TensorDataset(pictures, torch.from_numpy(classes))
    return Parts(
        labels=labels.tolist(),
        train=TensorDataset(*everything[train]),
        test=TensorDataset(*everything[test]),
        speakers_in_both=None if speakers is None else len({speakers[i] for i in train} & {speakers[i] for i in test}),
    )


def _picture(utterance: Utterance, size: int) -> torch.Tensor:
    if utterance.audio is None:
        raise ValueError(f"{utterance.corpus}'s {utterance.id} has no recording")
    return picture(decode(utterance.audio), size)
