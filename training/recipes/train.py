"""Train a fusion on the cached features of frozen encoders."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from pydantic import BaseModel
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from shared.modeling.fusion import CrossAttentionFusion, FusionConfig
from training.data.corpus import Split, Utterance, views
from training.data.dataset import EvaluationSet, Features, TrainingBatches, collate
from training.data.load import load
from training.lit_fusion import LitFusion


class Run(BaseModel):
    """What those who read a training's result need to know of it."""

    corpora: tuple[str, ...]
    fusion: FusionConfig


def train(
    data: Path,
    cache: Path,
    out: Path,
    corpora: Sequence[str],
    fusion: FusionConfig = FusionConfig(),  # noqa: B008 - frozen
    augmentations: Sequence[str] = ("speed", "noise", "telephone"),
    corpus_weights: dict[str, float] | None = None,
    gaps: float = 0.3,
    mixup: float = 0.3,
    own_words: float = 0.35,
    matching_words: float = 0.25,
    voices: int = 32,
    texts: int = 64,
    steps_per_epoch: int = 150,
    epochs: int = 10,
    patience: int = 4,
    learning_rate: float = 5e-4,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.05,
    valence_weight: float = 0.5,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 5,
    precision: str = "32-true",
    accelerator: str = "auto",
    resume: bool = False,
) -> None:
    """Train, keep the best epoch by validation, and write `fusion.safetensors` and `run.json`.

    Metrics go to a CSV file.

    Args:
        data: holds the corpora.
        cache: written by `cache_features`.
        out: checkpoints, metrics and the result.
        corpora: which corpora.
        fusion: the model's shapes.
        augmentations: of the voice, drawn for half of the spoken utterances.
        corpus_weights: how often a corpus is drawn, against the others with the same modality; 1 if not named.
        gaps: the longest of two spans left out of every voice, as a share of it.
        mixup: how much voices are mixed with one another, see `Batch.mixed`.
        own_words: share of the spoken utterances that come with their own words.
        matching_words: share that come with words of the same emotion from another corpus.
        voices: spoken utterances a batch.
        texts: texts a batch.
        steps_per_epoch: batches between two validations.
        epochs: at most.
        patience: epochs without a better score until training stops.
        learning_rate: the highest.
        weight_decay: AdamW's.
        label_smoothing: of the cross-entropy.
        valence_weight: of the valence's squared error.
        seed: of weights and draws.
        fold: cross-validation over speakers: this fold of the spoken corpora, 0 to `folds` - 1, is kept for testing,
            nothing is chosen by it, and all epochs are trained.
        folds: how many.
        precision: Lightning's, such as bf16-mixed.
        accelerator: Lightning's.
        resume: go on from the last checkpoint in `out`, if there is one.
    """
    lightning.seed_everything(seed, workers=True)
    utterances = load(data, corpora)
    kept_for_training = [u for u in utterances if is_training(u, fold, folds)]
    features = Features(cache, corpora, ["original", *augmentations])
    batches = TrainingBatches(
        features,
        fusion,
        [u for u in kept_for_training if u.audio],
        [u for u in kept_for_training if not u.audio],
        voices=voices,
        texts=texts,
        corpus_weights=corpus_weights or {},
        augmentations=augmentations,
        gaps=gaps,
        own_words=own_words,
        matching_words=matching_words,
        seed=seed,
    )
    validation = {} if fold is not None else _validation(features, fusion, utterances)
    module = LitFusion(fusion, learning_rate, weight_decay, label_smoothing, valence_weight, mixup, list(validation))
    standardize(module.fusion, features, kept_for_training, seed)
    checkpoint = ModelCheckpoint(
        dirpath=out,
        filename="best",
        monitor="val/score" if validation else None,
        mode="max",
        save_last=True,
        # Else a second run writes `last-v1.ckpt`, and `resume` would go on from the first.
        enable_version_counter=False,
    )
    stopping = [EarlyStopping("val/score", mode="max", patience=patience)] if validation else []
    trainer = lightning.Trainer(
        max_epochs=epochs,
        limit_train_batches=steps_per_epoch,
        precision=precision,  # pyright: ignore[reportArgumentType] - the values are Lightning's to check
        accelerator=accelerator,
        gradient_clip_val=1.0,
        callbacks=[checkpoint, RichProgressBar(), *stopping],
        logger=CSVLogger(out, name="", version=""),
        num_sanity_val_steps=0,
        log_every_n_steps=20,
    )
    last = out / "last.ckpt"
    trainer.fit(
        module,
        DataLoader(batches, batch_size=None),
        list(validation.values()) or None,
        ckpt_path=last if resume and last.exists() else None,
    )
    if validation:
        state = trainer.strategy.load_checkpoint(checkpoint.best_model_path, weights_only=True)["state_dict"]
        module.load_state_dict(state)
    save_file({name: tensor.half() for name, tensor in module.fusion.state_dict().items()}, out / "fusion.safetensors")
    (out / "run.json").write_text(Run(corpora=tuple(corpora), fusion=fusion).model_dump_json(indent=1))


def standardize(
    fusion: CrossAttentionFusion, features: Features, utterances: Sequence[Utterance], seed: int, count: int = 400
) -> None:
    """Fit the fusion's standardizations to `count` utterances of every corpus."""
    order = np.random.default_rng(seed).permutation(len(utterances))
    chosen: dict[str, list[Utterance]] = {}
    for i in order:
        of_corpus = chosen.setdefault(utterances[i].corpus, [])
        if len(of_corpus) < count:
            of_corpus.append(utterances[i])
    picked = [utterance for of_corpus in chosen.values() for utterance in of_corpus]
    for standardization, read in ((fusion.text_standard, features.text), (fusion.voice_standard, features.voice)):
        found = [tokens for utterance in picked if (tokens := read(utterance)) is not None and len(tokens)]
        if found:
            standardization.fit(torch.cat(found))


def is_training(utterance: Utterance, fold: int | None, folds: int) -> bool:
    """Whether to train on it: its corpus says so, or for spoken ones in cross-validation, it is not in the fold."""
    if fold is None or utterance.audio is None:
        return utterance.split is Split.train
    return utterance.split is not Split.test and fold_of(utterance, folds) != fold


def fold_of(utterance: Utterance, folds: int) -> int:
    """The fold of an utterance's speaker: the digits of the name, else its letters, count round."""
    digits = "".join(letter for letter in utterance.group if letter.isdecimal())
    return (int(digits) if digits else sum(map(ord, utterance.group))) % folds


def _validation(
    features: Features, fusion: FusionConfig, utterances: Sequence[Utterance]
) -> dict[str, DataLoader[object]]:
    held_out = [u for u in utterances if u.split is Split.validation]
    sets = {
        name: EvaluationSet(features, [u for u in held_out if u.corpus == corpus], text=text, voice=voice)
        for name, (corpus, text, voice) in views(held_out).items()
    }
    collated = partial(collate, config=fusion)
    return {name: DataLoader(part, batch_size=128, collate_fn=collated) for name, part in sets.items() if len(part)}
