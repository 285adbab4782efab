"""The recipe `train`: trains a fusion on cached features, or together with its encoders."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader

from shared.modeling.fusion import Fusion, FusionConfig
from training.args import AugmentationArgs, BatchArgs, FoldArgs, ModelArgs, OptimizerArgs, TrainerArgs
from training.baseline_reliability import fit_baseline_reliability
from training.data.batches import TrainingBatches
from training.data.evaluation_set import EvaluationSet
from training.data.examples import Batch, Example, UnencodedBatch, collate, unencoded_batch
from training.data.input_sources import CachedFeatures, InputSource
from training.data.label_schemes import LabelScheme, scheme_named
from training.data.speaker_summaries import SpeakerSummaries, summarize_cached
from training.data.splits import SplitArgs, is_training
from training.data.utterance import Split, Utterance
from training.data.views import views
from training.encoder_branches import EncoderBranches
from training.fusion_module import FusionModule
from training.losses import Loss
from training.runs import RunConfig, TrainedRun

STANDARDIZED = 400
"""Utterances of every corpus that the standardization of features is fitted to."""


def train(
    data: Path,
    out: Path,
    corpora: Sequence[str],
    cache: Path | None = None,
    labels: str | LabelScheme = "ekman7",
    split: SplitArgs = SplitArgs(),  # noqa: B008 - frozen
    fold: FoldArgs | None = None,
    model: ModelArgs = ModelArgs(),  # noqa: B008 - frozen
    batches: BatchArgs = BatchArgs(),  # noqa: B008 - frozen
    augmentation: AugmentationArgs = AugmentationArgs(),  # noqa: B008 - frozen
    optimizer: OptimizerArgs = OptimizerArgs(),  # noqa: B008 - frozen
    trainer: TrainerArgs = TrainerArgs(),  # noqa: B008 - frozen
) -> None:
    """Train a model, keep the epoch with the best validation score, and write the run's folder.

    The folder has `run.json`, `fusion.safetensors`, the encoders that trained, the checkpoints, and the metrics as CSV
    and for TensorBoard.

    Args:
        data: The folder with the corpora.
        out: The folder to write.
        corpora: The corpora to train on, by name or by the path of a manifest.
        cache: A folder written by `cache_features`; the encoders are then frozen, and their features are read from it.
        labels: The label scheme, by name or written out.
        split: Which utterances train, validate and test.
        fold: The fold to leave out in a cross-validation over speakers; none by default.
        model: The model.
        batches: What a batch is made of.
        augmentation: How the training data is varied.
        optimizer: The optimizer and its schedule.
        trainer: How long to train, and on what.

    Raises:
        ValueError: both a cache and encoders are given, or neither, or bands of features that are not cached are to be
            masked.
    """
    _check_inputs(cache, model, augmentation)
    lightning.seed_everything(trainer.seed, workers=True)
    branches = EncoderBranches(model.text, model.audio, augmentation.dropped_spans) if cache is None else None
    config = _run_config(corpora, scheme_named(labels), split, model, branches)
    fusion = config.model.fusion
    utterances = config.utterances(data)
    training = [u for u in utterances if is_training(u, fold)]
    spoken = [u for u in training if u.audio]
    source = config.input_source(utterances, cache, ["original", *augmentation.kinds], trainer.seed)
    device = lightning.Fabric(accelerator=trainer.accelerator, devices=1).device
    speakers = _speaker_summaries(spoken, source, branches, augmentation.kinds, fusion, device)
    training_batches = TrainingBatches(
        source,
        speakers,
        _collate(branches, fusion),
        spoken,
        [u for u in training if not u.audio],
        batches=batches if fusion.relative else batches.model_copy(update={"earlier_turns": (0,)}),
        augmentation=augmentation,
        neutral=_neutral_label(config.labels),
        seed=trainer.seed,
    )
    held_out = [u for u in utterances if u.split is Split.validation and fold is None]
    validation = _validation_loaders(source, fusion, branches, held_out, audio_alone=batches.own_text < 1)
    module = FusionModule(
        fusion,
        branches,
        Loss(model.loss, torch.tensor([u.target for u in training])),
        config.labels.space.categories,
        optimizer,
        augmentation.mixup,
        list(validation),
        speakers if branches is not None and fusion.relative else None,
    )
    fit_statistics(module.to(device), source, training, speakers, trainer.seed)
    _fit(module, training_batches, validation, trainer, out)
    if isinstance(module.fusion, Fusion) and fusion.relative:
        # After training: a model that trains with baselines of reduced weight predicts first turns less well.
        fit_baseline_reliability(module.fusion.speaker_prior, speakers.by_speaker(), trainer.seed)
    TrainedRun(config, module.fusion, module.branches).save(out)


def _check_inputs(cache: Path | None, model: ModelArgs, augmentation: AugmentationArgs) -> None:
    if (cache is None) != model.trains_encoders:
        raise ValueError("give either a cache of features, or the encoders model.text and model.audio to train")
    if augmentation.masked_bands and cache is None:
        raise ValueError(
            f"augmentation.masked_bands is {augmentation.masked_bands}, but it masks cached features, and no cache is "
            "given"
        )


def _run_config(
    corpora: Sequence[str], labels: LabelScheme, split: SplitArgs, model: ModelArgs, branches: EncoderBranches | None
) -> RunConfig:
    """Returns the run's configuration, with the fusion's shapes that follow from the labels and the encoders."""
    fusion = model.fusion.model_copy(update={"categories": len(labels.space.categories)})
    fusion = fusion if branches is None else branches.fusion_shapes(fusion)
    model = model.model_copy(update={"fusion": fusion})
    return RunConfig(corpora=tuple(corpora), labels=labels, split=split, model=model)


def _neutral_label(labels: LabelScheme) -> int | None:
    return labels.space.index("neutral") if "neutral" in labels.space.categories else None


def _collate(
    branches: EncoderBranches | None, fusion: FusionConfig
) -> Callable[[Sequence[Example]], Batch | UnencodedBatch]:
    return partial(collate, config=fusion) if branches is None else unencoded_batch


def _fit(
    module: FusionModule,
    batches: TrainingBatches[Any],
    validation: Mapping[str, DataLoader[object]],
    args: TrainerArgs,
    out: Path,
) -> None:
    """Train, and load the weights of the best epoch if there was validation."""
    trainer = lightning.Trainer(
        devices=1,
        gradient_clip_val=1.0,
        callbacks=_callbacks(out, args.patience, validated=bool(validation)),
        logger=[CSVLogger(out, name="", version=""), TensorBoardLogger(out, name="", version="")],
        num_sanity_val_steps=0,
        log_every_n_steps=20,
        max_epochs=args.epochs,
        limit_train_batches=args.steps_per_epoch or batches.steps_per_epoch,
        accumulate_grad_batches=args.accumulate,
        precision=args.precision,  # pyright: ignore[reportArgumentType] - Lightning checks the value
        accelerator=args.accelerator,
    )
    last = out / "last.ckpt"
    trainer.fit(
        module,
        DataLoader(batches, batch_size=None),
        list(validation.values()) or None,
        ckpt_path=last if args.resume and last.exists() else None,
    )
    if validation:
        _load_best(trainer, module)


def _callbacks(out: Path, patience: int, *, validated: bool) -> list[Callback]:
    checkpoint = ModelCheckpoint(
        dirpath=out,
        filename="best",
        monitor="val/score" if validated else None,
        mode="max",
        save_last=True,
        # Otherwise a second run writes `last-v1.ckpt`, and `resume` would continue from the first one.
        enable_version_counter=False,
    )
    stopping = [EarlyStopping("val/score", mode="max", patience=patience)] if validated else []
    return [checkpoint, RichProgressBar(), *stopping]


def _load_best(trainer: lightning.Trainer, module: FusionModule) -> None:
    assert isinstance(trainer.checkpoint_callback, ModelCheckpoint)
    best = cast("str", trainer.checkpoint_callback.best_model_path)  # pyright: ignore[reportUnknownMemberType] - inferred
    module.load_state_dict(trainer.strategy.load_checkpoint(best, weights_only=True)["state_dict"])


def fit_statistics(
    module: FusionModule,
    source: InputSource,
    utterances: Sequence[Utterance],
    speakers: SpeakerSummaries,
    seed: int,
) -> None:
    """Fit the fusion's standardization and its prior over speakers to the features of the training data."""
    module.eval()
    _fit_standardization(module, source, utterances, seed)
    if isinstance(module.fusion, Fusion) and module.fusion.config.relative and (known := speakers.by_speaker()):
        module.fusion.speaker_prior.fit([summaries for summaries, _ in known])
    # Pretrained encoders are loaded in evaluation mode, and Lightning does not change the mode of a module.
    module.train()


@torch.no_grad()
def _fit_standardization(module: FusionModule, source: InputSource, utterances: Sequence[Utterance], seed: int) -> None:
    found = [_encoded(module, source, utterance) for utterance in _sample(utterances, seed, STANDARDIZED)]
    module.fusion.fit([batch.text for batch in found], [batch.audio for batch in found])


def _sample(utterances: Sequence[Utterance], seed: int, count: int) -> Iterator[Utterance]:
    """Yields up to `count` random utterances of every corpus."""
    taken: Counter[str] = Counter()
    for i in map(int, np.random.default_rng(seed).permutation(len(utterances))):
        taken[utterances[i].corpus] += 1
        if taken[utterances[i].corpus] <= count:
            yield utterances[i]


def _encoded(module: FusionModule, source: InputSource, utterance: Utterance) -> Batch:
    example = Example(utterance, source.text(utterance), source.audio(utterance))
    if module.branches is None:
        return collate([example], module.fusion.config)
    return module.encode(unencoded_batch([example]))


def _speaker_summaries(
    spoken: Sequence[Utterance],
    source: InputSource,
    branches: EncoderBranches | None,
    augmentations: Sequence[str],
    fusion: FusionConfig,
    device: torch.device,
) -> SpeakerSummaries:
    """Returns the summaries for the baselines; none if the fusion uses no baseline."""
    if not fusion.relative:
        return SpeakerSummaries([], lambda utterance, augmentation: None)
    if isinstance(source, CachedFeatures):
        return SpeakerSummaries(spoken, summarize_cached(source), augmentations)
    assert branches is not None
    return SpeakerSummaries(spoken, branches.to(device).eval().summarizer(source, fusion))


def _validation_loaders(
    source: InputSource,
    fusion: FusionConfig,
    branches: EncoderBranches | None,
    held_out: Sequence[Utterance],
    *,
    audio_alone: bool,
) -> dict[str, DataLoader[object]]:
    """Returns a loader for every view by name, and a second one with baselines of 10 turns if the fusion uses them.

    Args:
        audio_alone: whether a corpus that has texts is also validated by its audio alone.
    """
    sets: dict[str, EvaluationSet] = {}
    with_text = {u.corpus for u in held_out if u.text is not None}
    for name, view in views(held_out).items():
        if not (view.text or audio_alone) and view.corpus in with_text:
            continue
        part = [u for u in held_out if u.corpus == view.corpus]
        sets[name] = EvaluationSet(source, part, text=view.text, audio=view.audio)
        if view.audio and fusion.relative and isinstance(source, CachedFeatures):
            speakers = SpeakerSummaries([u for u in part if u.audio], summarize_cached(source))
            sets[f"{name}, 10 earlier turns"] = EvaluationSet(
                source, part, text=view.text, audio=view.audio, speakers=speakers, earlier_turns=10
            )
    size = 128 if branches is None else 16
    collate_fn = _collate(branches, fusion)
    return {name: DataLoader(part, batch_size=size, collate_fn=collate_fn) for name, part in sets.items() if len(part)}
