"""The recipe `transfer`: trains a residual network on one corpus's spectrograms, then on another's.

It repeats Durrani and Arshad 2021, "Transfer Learning based Speech Affect Recognition in Urdu", https://arxiv.org/abs/2103.03580.
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
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType] - its PathLike is bare
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import ResNetConfig, ResNetModel

from shared.audio.decoder import decode
from training.data.registry import load
from training.data.spectrogram import log_mel_image
from training.data.splits import Folding, folds, speaker_groups
from training.data.utterance import Utterance
from training.metrics import Scores, scores
from training.resnet_module import ResNetModule


class Phase(BaseModel):
    """A phase of the training, and the scores on the test clips of its corpus after it."""

    corpus: str
    epochs: int
    learning_rate: float
    frozen: bool = False
    """Train the last layer only."""
    scores: Scores | None = None


class Report(BaseModel):
    """The result. `speakers_in_both` counts the target's speakers on both sides of the split, None if unknown.

    The confusion matrices are in the order of `labels`, which are each corpus's own.
    """

    split: Folding
    train_clips: int
    test_clips: int
    speakers_in_both: int | None
    labels: dict[str, list[str]]
    phases: dict[str, Phase]


@dataclass(frozen=True)
class CorpusParts:
    """The training and test clips of a corpus, as spectrograms and classes; `labels` are the names of the classes."""

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
    """Train on the source, then a new last layer on the target, then the whole network on the target.

    Writes `resnet.safetensors`, `report.json`, and for each phase a folder with its last epoch and its losses as CSV.
    Nothing is chosen by the test clips: every phase ends with its last epoch.

    Args:
        data: The folder with the corpora.
        out: The folder to write.
        source: The corpus to train on first.
        target: The corpus to train on afterwards.
        split: Which clips test: `random`, so that speakers are on both sides as in the publication, or `speaker`, whose
            speakers are not trained on; both with equal shares of each label as far as possible.
        folds: One of this many parts tests.
        source_epochs: Epochs of the first phase; with 0 the network starts from random weights.
        head_epochs: Epochs of the second phase.
        whole_epochs: Epochs of the third phase.
        source_learning_rate: Adam's learning rate in the first phase.
        learning_rate: Adam's learning rate in the other phases.
        batch_size: Clips in a step.
        dropout: Dropout before the last layer.
        size: Height and width of the spectrograms.
        depths: Blocks of each stage; the default is ResNet-34 (He et al. 2016, table 1).
        widths: Channels of each stage.
        seed: The seed of the split, the weights and the order of the clips.
        precision: Lightning's precision, such as bf16-mixed.
        accelerator: Lightning's accelerator, such as cpu or gpu.
        resume: Continue from the last epoch of the phase that was interrupted.

    Raises:
        CorpusMissing: a corpus is not in its folder.
        ValueError: a corpus is unknown, has clips without recordings, or does not identify the speakers to split by.
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
        # Every phase continues with the body and the heads of the one before, and with a new optimizer.
        module = ResNetModule(body, heads[phase.corpus], phase.learning_rate, dropout, frozen=phase.frozen)
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
    """Returns a residual network with random weights and without a last layer, for images of one channel."""
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
        logger=CSVLogger(folder, name="losses"),  # in numbered folders, so that resuming deletes none
        log_every_n_steps=1,
    )


def _scores(trainer: lightning.Trainer, module: ResNetModule, part: CorpusParts, batch_size: int) -> Scores:
    batches = trainer.predict(module, DataLoader(part.test, batch_size))
    predicted = torch.cat([batch for batch in batches or [] if isinstance(batch, torch.Tensor)])
    return scores(part.test.tensors[1].numpy(), predicted.cpu().numpy(), part.labels)


def _parts(utterances: Sequence[Utterance], size: int, split: Folding, count: int, seed: int) -> CorpusParts:
    labels, classes = np.unique([utterance.label_name for utterance in utterances], return_inverse=True)
    groups = speaker_groups(utterances)
    speakers = None if groups is None else np.array(groups)
    train, test = next(folds(classes, groups, split, count, seed))
    images = torch.stack([_image(utterance, size) for utterance in track(utterances, utterances[0].corpus)])
    clips = TensorDataset(images, torch.as_tensor(classes))
    return CorpusParts(
        labels=labels.tolist(),
        train=TensorDataset(*clips[train]),
        test=TensorDataset(*clips[test]),
        speakers_in_both=None if speakers is None else np.intersect1d(speakers[train], speakers[test]).size,
    )


def _image(utterance: Utterance, size: int) -> torch.Tensor:
    if utterance.audio is None:
        raise ValueError(f"{utterance.corpus}'s {utterance.id} has no recording")
    return log_mel_image(decode(utterance.audio).samples, size)
