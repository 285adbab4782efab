"""Measure trained models on held-out utterances, by corpus and by the modalities they are given."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.special import expit

from shared.modeling.baseline import AudioSummary
from shared.modeling.fusion import AnyFusion, FusionOutput, build_fusion
from training.branches import Branches
from training.calibration import softmax
from training.data.corpus import Split, Utterance, views
from training.data.dataset import (
    EvaluationSet,
    Example,
    Features,
    Source,
    Speakers,
    cached_summary,
    collate,
    unencoded,
)
from training.data.splits import fold_of, notes
from training.recipes.train import Run, encoded_summary
from training.report import Predictions, Report, write_report

EARLIER_TURNS = (0, 1, 3, 10, 20)


@dataclass(frozen=True)
class Trained:
    """A run's result: the fusion, and the encoders where they learned too."""

    run: Run
    fusion: AnyFusion
    branches: Branches | None

    @classmethod
    def load(cls, folder: Path, accelerator: str = "cpu") -> "Trained":
        """What `train` wrote, on a device that Lightning knows by this name."""
        device = lightning.Fabric(accelerator=accelerator, devices=1).device
        run = Run.model_validate_json((folder / "run.json").read_text())
        fusion = build_fusion(run.fusion)
        fusion.load_state_dict(load_file(folder / "fusion.safetensors"))
        branches = Branches(*run.learned(folder / "encoders")) if run.live else None
        return cls(run, fusion.eval().to(device), None if branches is None else branches.eval().to(device))

    def read(self, examples: Sequence[Example]) -> FusionOutput:
        """What the model makes of a batch, on the CPU."""
        if self.branches is None:
            batch = collate(examples, self.run.fusion)
        else:
            batch = self.branches(unencoded(examples), self.run.fusion)
        batch = batch.to(next(self.fusion.parameters()).device)
        fused: FusionOutput = self.fusion(batch.text, batch.voice, batch.baseline)
        return FusionOutput(fused.logits.cpu(), fused.valence.cpu())

    def summary(self, source: Source, utterance: Utterance, way: str) -> AudioSummary | None:
        """What `Speakers` asks for."""
        if isinstance(source, Features):
            return cached_summary(source)(utterance, way)
        assert self.branches is not None
        return encoded_summary(self.branches, self.run.fusion, source, utterance, way)


def evaluate(
    data: Path,
    runs: Sequence[Path],
    out: Path,
    cache: Path | None = None,
    split: Split = Split.validation,
    folds: int | None = None,
    pooled: bool = False,
    earlier_turns: Sequence[int] = EARLIER_TURNS,
    one_mood: bool = False,
    unseen: Sequence[str] | None = None,
    accelerator: str = "auto",
) -> None:
    """Write a report of every view: figures as JSON, tables as Markdown, and pictures.

    Args:
        data: holds the corpora.
        runs: folders written by `train`: they are averaged, or with `folds` one a fold, in order, or `pooled`.
        out: the folder of `metrics.json`, `report.md` and the pictures.
        cache: written by `cache_features`, for runs that were trained on it.
        split: which utterances, unless there are folds.
        folds: cross-validation: every spoken utterance is read by the run that did not train on its speaker.
        pooled: each run answers for itself, and the figures count all answers: what training with another seed gives,
            which intervals then cover.
        earlier_turns: how many other utterances of the speaker a voice is read against, each measured, by models that
            read against a baseline.
        one_mood: those utterances are all of the emotion to be read, as far as there are so many: the hardest baseline,
            of somebody who was angry all along.
        unseen: corpora that the runs were not trained on, read whole in place of the split of those that they were.
        accelerator: Lightning's.

    Raises:
        ValueError: both `folds` and `pooled`, or a corpus is not unseen.
    """
    if folds is not None and pooled:
        raise ValueError("give either folds, of which every run reads its own, or pooled, where every run reads all")
    models = [_turned_to(unseen, Trained.load(run, accelerator)) for run in runs]
    run = models[0].run
    utterances = run.utterances(data)
    reading = partial(read_views, models, cache=cache, earlier_turns=earlier_turns, one_mood=one_mood, pooled=pooled)
    if folds is None:
        found = reading([u for u in utterances if unseen or u.split is split])
    else:
        found = reading(utterances, folds=folds)
    part = f"All of {', '.join(unseen)}, never trained on" if unseen else f"The {split} split"
    mood = ["All earlier turns are in the emotion of the turn that is read."] if one_mood else []
    what = [_what(part, folds, pooled, len(runs)), *mood, "Before calibration: the temperature is 1."]
    show(write_report(out, found, [*what, *notes(utterances, run.split.strategy)]))


def _turned_to(unseen: Sequence[str] | None, model: Trained) -> Trained:
    if unseen is None:
        return model
    if known := sorted(set(unseen) & set(model.run.corpora)):
        raise ValueError(f"{', '.join(known)} was trained on, so it is not unseen")
    return replace(model, run=model.run.model_copy(update={"corpora": tuple(unseen)}))


def show(report: Report) -> None:
    """Print the figures that matter most."""
    for name, view in report.views.items():
        of = view.metrics
        print(f"{name:34} n={of.count:5}  WF1 {of.weighted_f1:.3f}  UAR {of.uar:.3f}  ECE {of.ece:.3f}")


class Reader:
    """A trained model and what it reads, opened once, whatever views of it are asked for.

    Args:
        model: the model.
        utterances: of one split: among them are the earlier turns of each.
        cache: see `evaluate`.
        one_mood: see `evaluate`.
    """

    def __init__(
        self, model: Trained, utterances: Sequence[Utterance], cache: Path | None = None, one_mood: bool = False
    ) -> None:
        self.model = model
        self._one_mood = one_mood
        self.utterances = list(utterances)
        self._source = model.run.source(utterances, cache)

    def examples(self, corpus: str, *, text: bool, voice: bool, earlier_turns: int | None = None) -> EvaluationSet:
        """A corpus's utterances that have the modalities."""
        part = [u for u in self.utterances if u.corpus == corpus]
        known = self._speakers if earlier_turns and voice else None
        turns = earlier_turns or 0
        return EvaluationSet(
            self._source,
            part,
            text=text,
            voice=voice,
            speakers=known,
            earlier_turns=turns,
            one_mood=self._one_mood,
        )

    @torch.inference_mode()
    def answers(self, examples: EvaluationSet) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Their logits, shape [count, categories], and their valence, shape [count]."""
        fused = [self.model.read(part) for part in _batches(examples, 128 if self.model.branches is None else 16)]
        logits = [np.zeros((0, self.model.run.fusion.categories)), *(one.logits.numpy() for one in fused)]
        valence = [np.zeros(0), *(one.valence.numpy() for one in fused)]
        return np.concatenate(logits), np.concatenate(valence)

    @cached_property
    def _speakers(self) -> Speakers:
        with torch.inference_mode():
            return Speakers([u for u in self.utterances if u.audio], partial(self.model.summary, self._source))


Parts = Sequence[Sequence[Reader]]
"""Parts of a corpus, one after another, each with those who read it, who are averaged."""


def read_views(
    models: Sequence[Trained],
    utterances: Sequence[Utterance],
    *,
    cache: Path | None = None,
    folds: int | None = None,
    pooled: bool = False,
    earlier_turns: Sequence[int] = EARLIER_TURNS,
    one_mood: bool = False,
) -> list[Predictions]:
    """What models make of every view of the utterances, see `evaluate`."""
    if folds is not None:
        utterances = [u for u in utterances if u.audio and u.split is not Split.test]
    reader = partial(Reader, cache=cache, one_mood=one_mood)
    seeds = _readers(reader, models, utterances, folds, pooled)
    found: list[Predictions] = []
    for name, (corpus, text, voice) in views(utterances).items():
        for turns in earlier_turns if voice and models[0].run.fusion.relative else (None,):
            view = partial(read, name, corpus=corpus, text=text, voice=voice, earlier_turns=turns)
            readings = [of_seed for parts in seeds if (of_seed := view(parts)) is not None]
            found += [_pooled(readings)] if readings else []
    return found


def _readers(
    reader: Callable[[Trained, Sequence[Utterance]], Reader],
    models: Sequence[Trained],
    utterances: Sequence[Utterance],
    folds: int | None,
    pooled: bool,
) -> list[Parts]:
    """For each seed whose answers count for themselves, who reads what."""
    if folds is not None:
        parts = [[u for u in utterances if fold_of(u, folds) == i] for i in range(len(models))]
        return [[[reader(model, part)] for model, part in zip(models, parts, strict=True)]]
    readers = [reader(model, utterances) for model in models]
    return [[[one]] for one in readers] if pooled else [[readers]]


def _pooled(seeds: Sequence[Predictions]) -> Predictions:
    """The same utterances read by several seeds, as one."""
    if len(seeds) == 1:
        return seeds[0]
    stacked = {
        name: np.stack([getattr(readings, name) for readings in seeds])
        for name in ("probabilities", "valence", "each")
        if getattr(seeds[0], name) is not None
    }
    return replace(seeds[0], **stacked)


def predict(
    readers: Sequence[Reader], corpus: str, *, text: bool, voice: bool, earlier_turns: int | None = None
) -> tuple[list[Utterance], NDArray[np.floating], NDArray[np.floating]]:
    """A corpus's utterances that have the modalities, their logits, shape [count, categories], and their valence.

    Several readers of the same are averaged.
    """
    sets = [reader.examples(corpus, text=text, voice=voice, earlier_turns=earlier_turns) for reader in readers]
    answers = [reader.answers(examples) for reader, examples in zip(readers, sets, strict=True)]
    logits, valence = (np.mean(side, axis=0) for side in zip(*answers, strict=True))
    return sets[0].utterances, logits, valence


def read(
    name: str,
    parts: Parts,
    *,
    corpus: str,
    text: bool,
    voice: bool,
    earlier_turns: int | None = None,
    temperature: float = 1.0,
) -> Predictions | None:
    """What some models make of their part of a view's utterances; None where none of it has the modalities."""
    outputs = [predict(readers, corpus, text=text, voice=voice, earlier_turns=earlier_turns) for readers in parts]
    utterances = [utterance for found, _, _ in outputs for utterance in found]
    if not utterances:
        return None
    run, logits = parts[0][0].model.run, np.concatenate([logits for _, logits, _ in outputs])
    true = np.array([u.target for u in utterances]) > 0
    several = run.loss.multi_label and bool((true.sum(axis=1) > 1).any())
    return Predictions(
        name=name,
        labels=np.array([u.label for u in utterances]),
        probabilities=softmax(logits, temperature),
        categories=run.labels.space.categories,
        groups=[u.group for u in utterances],
        languages=[u.language for u in utterances],
        genders=[u.gender for u in utterances],
        valence=np.concatenate([valence for _, _, valence in outputs]),
        true_valence=np.array([np.nan if u.valence is None else u.valence for u in utterances]),
        earlier_turns=earlier_turns,
        each=expit(logits) if several else None,
        true_each=true if several else None,
    )


def _batches(examples: EvaluationSet, size: int) -> Iterator[list[Example]]:
    for start in range(0, len(examples), size):
        yield [examples[i] for i in range(start, min(start + size, len(examples)))]


def _what(part: str, folds: int | None, pooled: bool, runs: int) -> str:
    if folds is not None:
        return f"Cross-validation over speakers in {folds} folds: each is read by the run that did not train on them."
    if pooled:
        return f"{part}, read by each of {runs} runs; the figures count the answers of all."
    return f"{part}, read by {'one run' if runs == 1 else f'the average of {runs} runs'}."
