"""Train a fusion: on the cached features of frozen encoders, or together with encoders that learn."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from pydantic import BaseModel
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from shared.audio.decoder import probe
from shared.modeling.baseline import AudioSummary, summarize_audio
from shared.modeling.fusion import Fusion, FusionConfig
from training.branches import Branches, TextBranch, VoiceBranch
from training.data.corpus import Split, Utterance, views
from training.data.dataset import (
    Batch,
    EvaluationSet,
    Example,
    Features,
    Recordings,
    Source,
    Speakers,
    TrainingBatches,
    Unencoded,
    cached_summary,
    collate,
    unencoded,
)
from training.data.labels import SCHEMES, LabelScheme, scheme_named
from training.data.load import load
from training.data.splits import SplitPlan, is_training
from training.lit_fusion import LitFusion
from training.losses import Loss, LossConfig
from training.variety import fit_variety

Kind = TypeVar("Kind", TextBranch | None, VoiceBranch | None)


class Run(BaseModel):
    """What those who read a training's result need to know of it."""

    corpora: tuple[str, ...]
    fusion: FusionConfig
    labels: LabelScheme = SCHEMES["ekman7"]
    split: SplitPlan = SplitPlan()
    loss: LossConfig = LossConfig()
    text: TextBranch | None = None
    voice: VoiceBranch | None = None

    @property
    def live(self) -> bool:
        """Whether the encoders learned too."""
        return self.text is not None or self.voice is not None

    def learned(self, encoders: Path) -> tuple[TextBranch | None, VoiceBranch | None]:
        """The branches with the encoders that `train` wrote in place of those that it began with."""
        return _from(self.text, encoders, "text"), _from(self.voice, encoders, "voice")

    def utterances(self, data: Path) -> list[Utterance]:
        """The corpora as the run saw them: its labels, its splits, and only what its branches read.

        Where the loss is multi-label, each of an utterance's categories counts whole, and not by its share.

        Raises:
            ValueError: a corpus has nothing for the branches, or a branch reads nothing of any corpus.
        """
        found = self.split.apply(load(data, self.corpora, self.labels))
        if self.loss.multi_label:
            found = [replace(u, target=tuple(float(share > 0) for share in u.target or ())) for u in found]
        if self.live:
            found = [self._as_read(utterance) for utterance in found]
            found = [u for u in found if u.text is not None or u.audio is not None]
            self._check_read(found)
        return [utterance for utterance in found if self._is_heard(utterance)]

    def source(
        self, utterances: Sequence[Utterance], cache: Path | None, ways: Sequence[str] = ("original",), seed: int = 0
    ) -> Source:
        """Where the words and voices are read from, the latter augmented in some ways.

        Raises:
            ValueError: the encoders are frozen, and no cache of their features is given.
        """
        if self.live:
            return Recordings(utterances, 0 if self.text is None else self.text.encoder.context_turns, seed)
        if cache is None:
            raise ValueError("this run rests on cached features: give the cache")
        return Features(cache, tuple(dict.fromkeys(u.corpus for u in utterances)), ways)

    def _as_read(self, utterance: Utterance) -> Utterance:
        return replace(
            utterance,
            text=None if self.text is None else utterance.text,
            audio=None if self.voice is None else utterance.audio,
        )

    def _check_read(self, found: Sequence[Utterance]) -> None:
        if left_out := set(self.corpora) - {u.corpus for u in found}:
            raise ValueError(f"{', '.join(sorted(left_out))}: there is nothing that the branches of this run read")
        if self.text is not None and all(u.text is None for u in found):
            raise ValueError(f"the text branch has nothing to read: {', '.join(self.corpora)} have no words here")
        if self.voice is not None and all(u.audio is None for u in found):
            raise ValueError(f"the voice branch has nothing to hear: {', '.join(self.corpora)} have no recordings here")

    def _is_heard(self, utterance: Utterance) -> bool:
        if utterance.audio is None or self.voice is None or self.voice.seconds is None:
            return True
        shortest, longest = self.voice.seconds
        return shortest <= (probe(utterance.audio).duration_s or 0) <= longest


def _from(branch: Kind, encoders: Path, name: str) -> Kind:
    if branch is None:
        return branch
    source = encoders / name if (encoders / name).is_dir() else encoders
    encoder = branch.encoder.model_copy(update={"source": str(source), "revision": None})
    return branch.model_copy(update={"encoder": encoder, "freeze": "all", "lora": None, "recompute": False})


def train(
    data: Path,
    out: Path,
    corpora: Sequence[str],
    cache: Path | None = None,
    text: TextBranch | None = None,
    voice: VoiceBranch | None = None,
    labels: str | LabelScheme = "ekman7",
    split: SplitPlan = SplitPlan(),  # noqa: B008 - frozen
    fusion: FusionConfig = FusionConfig(),  # noqa: B008 - frozen
    loss: LossConfig = LossConfig(label_smoothing=0.05),  # noqa: B008 - frozen
    augmentations: Sequence[str] = ("speed", "noise", "telephone"),
    corpus_weights: dict[str, float] | None = None,
    gaps: float = 0.3,
    bands: float = 0.0,
    mixup: float = 0.3,
    own_words: float = 0.35,
    matching_words: float = 0.25,
    neutral_words: float = 0.0,
    earlier_turns: Sequence[int] = (0, 0, 0, 1, 2, 3, 5, 8, 12, 16, 20),
    voices: int = 32,
    texts: int = 64,
    accumulate: int = 1,
    steps_per_epoch: int | None = None,
    epochs: int = 10,
    patience: int = 4,
    learning_rate: float = 5e-4,
    schedule: Literal["cosine", "linear"] = "cosine",
    warmup: float = 0.1,
    weight_decay: float = 0.05,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 5,
    precision: str = "32-true",
    accelerator: str = "auto",
    resume: bool = False,
) -> None:
    """Train, keep the best epoch by validation, and write `fusion.safetensors`, `run.json` and encoders that learned.

    Metrics go to a CSV file and to TensorBoard's.

    Args:
        data: holds the corpora.
        out: checkpoints, metrics and the result.
        corpora: which corpora.
        cache: written by `cache_features`: the encoders are frozen, and their features are read from there.
        text: without a cache, the encoder of the words, which learns too; None reads no words.
        voice: without a cache, the encoder of the voice; None hears no voice.
        labels: the categories, a label scheme or its name.
        split: which utterances train, validate and test.
        fusion: the model's shapes; those that follow from the encoders and the labels are put in.
        loss: of a batch.
        augmentations: of the voice, drawn for half of the spoken utterances.
        corpus_weights: how often a corpus is drawn, against the others with the same modality, 1 if not named; None
            takes every utterance once an epoch.
        gaps: the longest of two spans left out of every voice, as a share of it.
        bands: the widest of two bands of cached features held at the clip's mean, as a share of all, which is the other
            half of SpecAugment (Park et al. 2019); 0 masks none.
        mixup: how much voices are mixed with one another, see `Batch.mixed`.
        own_words: share of the spoken utterances that come with their own words; where all do, no choice is made by how
            well voices are read without.
        matching_words: share that come with words of the same emotion from another corpus.
        neutral_words: share that come with neutral words from another corpus, whatever the voice says.
        earlier_turns: how many other utterances of the speaker a voice is read against; each batch draws one of these.
        voices: spoken utterances a batch.
        texts: texts a batch.
        accumulate: batches a step.
        steps_per_epoch: batches between two validations; None is as many as it takes to see all that is spoken, or
            written where nothing is.
        epochs: at most.
        patience: epochs without a better score until training stops.
        learning_rate: the fusion's highest; the branches have their own.
        schedule: how the learning rates fall after they rose.
        warmup: share of all steps that the learning rates take to rise.
        weight_decay: AdamW's.
        seed: of weights and draws.
        fold: cross-validation over speakers: this fold of the spoken corpora, 0 to `folds` - 1, is kept for testing,
            nothing is chosen by it, and all epochs are trained.
        folds: how many.
        precision: Lightning's, such as bf16-mixed.
        accelerator: Lightning's.
        resume: go on from the last checkpoint in `out`, if there is one.

    Raises:
        ValueError: neither a cache nor a branch is given, or both, or bands of features that are not cached.
    """
    _check_given(cache, text, voice, bands)
    lightning.seed_everything(seed, workers=True)
    branches = Branches(text, voice, gaps) if cache is None else None
    run = _run(corpora, fusion, scheme_named(labels), split, loss, branches, text, voice)
    utterances = run.utterances(data)
    training = [u for u in utterances if is_training(u, fold, folds)]
    held_out = [u for u in utterances if u.split is Split.validation and fold is None]
    source = run.source(utterances, cache, ["original", *augmentations], seed)
    device = lightning.Fabric(accelerator=accelerator, devices=1).device
    known = _speakers([u for u in training if u.audio], source, branches, augmentations, run.fusion, device)
    batches = TrainingBatches(
        source,
        known,
        _together(branches, run.fusion),
        [u for u in training if u.audio],
        [u for u in training if not u.audio],
        voices=voices,
        texts=texts,
        corpus_weights=corpus_weights,
        augmentations=augmentations,
        gaps=gaps,
        bands=bands,
        own_words=own_words,
        matching_words=matching_words,
        neutral_words=neutral_words,
        neutral=_index_of_neutral(run.labels),
        earlier_turns=earlier_turns if run.fusion.relative else (0,),
        seed=seed,
    )
    validation = _validation(source, run.fusion, branches, held_out, voices_alone=own_words < 1)
    module = LitFusion(
        run.fusion,
        branches,
        Loss(loss, torch.tensor([u.target for u in training])),
        run.labels.space.categories,
        learning_rate,
        schedule,
        warmup,
        weight_decay,
        mixup,
        list(validation),
        known if branches is not None and run.fusion.relative else None,
    )
    measure(module.to(device), source, training, known, seed)
    trainer = _trainer(
        out,
        patience,
        validated=bool(validation),
        max_epochs=epochs,
        limit_train_batches=steps_per_epoch or batches.steps_per_epoch,
        accumulate_grad_batches=accumulate,
        precision=precision,
        accelerator=accelerator,
    )
    _fit(trainer, module, batches, validation, out / "last.ckpt" if resume else None)
    if isinstance(module.fusion, Fusion) and run.fusion.relative:
        # Afterwards: a model that trains with baselines that are half believed reads first turns worse.
        fit_variety(module.fusion.speaker_prior, known.voices(), seed)
    _write(run, module, out)


def _check_given(cache: Path | None, text: TextBranch | None, voice: VoiceBranch | None, bands: float) -> None:
    if (cache is None) != (text is not None or voice is not None):
        raise ValueError("give either a cache of frozen encoders' features, or the branches text and voice to train")
    if bands and cache is None:
        raise ValueError(f"bands is {bands}, but it masks cached features, and no cache is given")


def _run(
    corpora: Sequence[str],
    fusion: FusionConfig,
    labels: LabelScheme,
    split: SplitPlan,
    loss: LossConfig,
    branches: Branches | None,
    text: TextBranch | None,
    voice: VoiceBranch | None,
) -> Run:
    """The run with the fusion's shapes that follow from the labels and the encoders."""
    fusion = fusion.model_copy(update={"categories": len(labels.space.categories)})
    fusion = fusion if branches is None else branches.shaped(fusion)
    return Run(corpora=tuple(corpora), fusion=fusion, labels=labels, split=split, loss=loss, text=text, voice=voice)


def _index_of_neutral(labels: LabelScheme) -> int | None:
    return labels.space.index("neutral") if "neutral" in labels.space.categories else None


def _together(branches: Branches | None, fusion: FusionConfig) -> Callable[[Sequence[Example]], Batch | Unencoded]:
    """How examples become a batch."""
    return partial(collate, config=fusion) if branches is None else unencoded


def _trainer(out: Path, patience: int, *, validated: bool, **options: Any) -> lightning.Trainer:  # noqa: ANN401 - Lightning's
    return lightning.Trainer(
        devices=1,
        gradient_clip_val=1.0,
        callbacks=_callbacks(out, patience, validated=validated),
        logger=[CSVLogger(out, name="", version=""), TensorBoardLogger(out, name="", version="")],
        num_sanity_val_steps=0,
        log_every_n_steps=20,
        **options,
    )


def _fit(
    trainer: lightning.Trainer,
    module: LitFusion,
    batches: TrainingBatches[Any],
    validation: Mapping[str, DataLoader[object]],
    last: Path | None,
) -> None:
    """Train, from the last checkpoint where there is one, and go back to the best epoch where that is known."""
    trainer.fit(
        module,
        DataLoader(batches, batch_size=None),
        list(validation.values()) or None,
        ckpt_path=last if last is not None and last.exists() else None,
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
        # Else a second run writes `last-v1.ckpt`, and `resume` would go on from the first.
        enable_version_counter=False,
    )
    stopping = [EarlyStopping("val/score", mode="max", patience=patience)] if validated else []
    return [checkpoint, RichProgressBar(), *stopping]


def _load_best(trainer: lightning.Trainer, module: LitFusion) -> None:
    assert isinstance(trainer.checkpoint_callback, ModelCheckpoint)
    best = trainer.checkpoint_callback.best_model_path
    module.load_state_dict(trainer.strategy.load_checkpoint(best, weights_only=True)["state_dict"])


def _write(run: Run, module: LitFusion, out: Path) -> None:
    state = {name: tensor.half() for name, tensor in module.fusion.state_dict().items()}
    save_file(state, out / "fusion.safetensors")
    if module.branches is not None:
        module.branches.save(out / "encoders")
    (out / "run.json").write_text(run.model_dump_json(indent=1))


def measure(module: LitFusion, source: Source, utterances: Sequence[Utterance], known: Speakers, seed: int) -> None:
    """Fit the fusion's statistics to what its encoders make of the training data by now."""
    module.eval()
    standardize(module, source, utterances, seed)
    if isinstance(module.fusion, Fusion) and module.fusion.config.relative and (speakers := known.voices()):
        module.fusion.speaker_prior.fit([voices for voices, _ in speakers])
    # Pretrained encoders are loaded as they are served, and Lightning leaves every module's mode as it is.
    module.train()


@torch.no_grad()
def standardize(
    module: LitFusion, source: Source, utterances: Sequence[Utterance], seed: int, count: int = 400
) -> None:
    """Fit the fusion's standardizations to `count` utterances of every corpus."""
    found = [_batch(module, source, utterance) for utterance in _some(utterances, seed, count)]
    module.fusion.fit([batch.text for batch in found], [batch.voice for batch in found])


def _some(utterances: Sequence[Utterance], seed: int, count: int) -> Iterator[Utterance]:
    """Up to `count` utterances of every corpus, at random."""
    taken: Counter[str] = Counter()
    for i in np.random.default_rng(seed).permutation(len(utterances)):
        taken[utterances[i].corpus] += 1
        if taken[utterances[i].corpus] <= count:
            yield utterances[i]


def _batch(module: LitFusion, source: Source, utterance: Utterance) -> Batch:
    example = Example(utterance, source.text(utterance), source.voice(utterance))
    if module.branches is None:
        return collate([example], module.fusion.config)
    return module.encoded(unencoded([example]))


def _speakers(
    spoken: Sequence[Utterance],
    source: Source,
    branches: Branches | None,
    augmentations: Sequence[str],
    fusion: FusionConfig,
    device: torch.device,
) -> Speakers:
    """Those who speak, where a voice is read against its speaker's baseline."""
    if not fusion.relative:
        return Speakers([], lambda utterance, way: None)
    if isinstance(source, Features):
        return Speakers(spoken, cached_summary(source), augmentations)
    assert branches is not None
    return Speakers(spoken, partial(encoded_summary, branches.to(device).eval(), fusion, source))


@torch.no_grad()
def encoded_summary(
    branches: Branches, fusion: FusionConfig, source: Source, utterance: Utterance, way: str
) -> AudioSummary | None:
    """What `Speakers` asks for, of encoders that learn."""
    batch = branches(unencoded([Example(utterance, None, source.voice(utterance, way))]), fusion)
    return summarize_audio(batch.voice)[0].half().cpu().numpy()


def _validation(
    source: Source,
    fusion: FusionConfig,
    branches: Branches | None,
    held_out: Sequence[Utterance],
    *,
    voices_alone: bool,
) -> dict[str, DataLoader[object]]:
    sets: dict[str, EvaluationSet] = {}
    worded = {u.corpus for u in held_out if u.text is not None}
    for name, (corpus, text, voice) in views(held_out).items():
        if not (text or voices_alone) and corpus in worded:
            continue
        part = [u for u in held_out if u.corpus == corpus]
        sets[name] = EvaluationSet(source, part, text=text, voice=voice)
        if voice and fusion.relative and isinstance(source, Features):
            known = Speakers([u for u in part if u.audio], cached_summary(source))
            sets[f"{name}, 10 earlier turns"] = EvaluationSet(
                source, part, text=text, voice=voice, speakers=known, earlier_turns=10
            )
    size = 128 if branches is None else 16
    together = _together(branches, fusion)
    return {name: DataLoader(part, batch_size=size, collate_fn=together) for name, part in sets.items() if len(part)}
