"""Predictions of trained runs on held-out utterances, by view and by the number of earlier turns."""

# SciPy has no types.
# pyright: reportMissingTypeStubs=false

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from training.calibration import softmax
from training.data.evaluation_set import EvaluationSet
from training.data.examples import Example
from training.data.speaker_summaries import SpeakerSummaries
from training.data.splits import fold_of
from training.data.utterance import Split, Utterance
from training.data.views import View, views
from training.report import ViewPredictions
from training.runs import TrainedRun

EARLIER_TURNS = (0, 1, 3, 10, 20)
"""The sizes of the baselines that are measured by default."""


class UtterancePredictor:
    """Predicts the views of some utterances with a trained run; its inputs and summaries are opened once for all views.

    Args:
        run: the trained run.
        utterances: the utterances of one split; among them are the earlier turns of each.
        cache: a folder written by `cache_features`, for a run that was trained on one.
        same_emotion: see `EvaluationSet`.
    """

    def __init__(
        self, run: TrainedRun, utterances: Sequence[Utterance], cache: Path | None = None, same_emotion: bool = False
    ) -> None:
        self.run = run
        self._same_emotion = same_emotion
        self.utterances = list(utterances)
        self._source = run.config.input_source(utterances, cache)

    @property
    def uses_baseline(self) -> bool:
        """Whether the run reads audio relative to the speaker's baseline."""
        return self.run.config.model.fusion.relative

    def examples(self, view: View, earlier_turns: int | None = None) -> EvaluationSet:
        """Returns the utterances of a view that have its modalities."""
        return EvaluationSet(
            self._source,
            [u for u in self.utterances if u.corpus == view.corpus],
            text=view.text,
            audio=view.audio,
            speakers=self._speakers if earlier_turns and view.audio else None,
            earlier_turns=earlier_turns or 0,
            same_emotion=self._same_emotion,
        )

    @torch.inference_mode()
    def predict(self, examples: EvaluationSet) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Returns the logits, of shape [count, categories], and the valences, of shape [count]."""
        size = 128 if self.run.branches is None else 16
        fused = [self.run.predict(batch) for batch in _batches(examples, size)]
        logits = [np.zeros((0, self.run.config.model.fusion.categories)), *(one.logits.numpy() for one in fused)]
        valence = [np.zeros(0), *(one.valence.numpy() for one in fused)]
        return np.concatenate(logits), np.concatenate(valence)

    @cached_property
    def _speakers(self) -> SpeakerSummaries:
        with torch.inference_mode():
            return SpeakerSummaries([u for u in self.utterances if u.audio], self.run.summarizer(self._source))


Ensemble = Sequence[UtterancePredictor]
"""Predictors of the same utterances, whose logits are averaged."""


def predict_views(
    runs: Sequence[TrainedRun],
    utterances: Sequence[Utterance],
    *,
    cache: Path | None = None,
    folds: int | None = None,
    pooled: bool = False,
    earlier_turns: Sequence[int] = EARLIER_TURNS,
    same_emotion: bool = False,
) -> list[ViewPredictions]:
    """Returns the predictions of every view of the utterances. For the arguments, see `evaluate`."""
    if folds is not None:
        utterances = [u for u in utterances if u.audio and u.split is not Split.test]
    predictor = partial(UtterancePredictor, cache=cache, same_emotion=same_emotion)
    seeds = _by_seed(predictor, runs, utterances, folds, pooled)
    uses_baseline = runs[0].config.model.fusion.relative
    found: list[ViewPredictions] = []
    for name, view in views(utterances).items():
        for turns in earlier_turns if view.audio and uses_baseline else (None,):
            predictions = [predict_view(name, view, ensembles, earlier_turns=turns) for ensembles in seeds]
            present = [of_seed for of_seed in predictions if of_seed is not None]
            found += [_pooled(present)] if present else []
    return found


def predict(
    ensemble: Ensemble, view: View, earlier_turns: int | None = None
) -> tuple[list[Utterance], NDArray[np.floating], NDArray[np.floating]]:
    """Returns the utterances of a view with their logits and valences, averaged over the ensemble.

    Returns:
        The utterances that have the view's modalities, logits of shape [count, categories] and valences of shape
        [count].
    """
    sets = [predictor.examples(view, earlier_turns) for predictor in ensemble]
    outputs = [predictor.predict(examples) for predictor, examples in zip(ensemble, sets, strict=True)]
    logits, valence = (np.mean(side, axis=0) for side in zip(*outputs, strict=True))
    return sets[0].utterances, logits, valence


def predict_view(
    name: str,
    view: View,
    ensembles: Sequence[Ensemble],
    *,
    earlier_turns: int | None = None,
    temperature: float = 1.0,
) -> ViewPredictions | None:
    """Returns the predictions of a view, or None if no utterance has its modalities.

    Args:
        name: the name of the view.
        view: the view.
        ensembles: each predicts its own part of the utterances.
        earlier_turns: the size of the baselines; None for a run without baselines.
        temperature: divides the logits.
    """
    outputs = [predict(ensemble, view, earlier_turns) for ensemble in ensembles]
    utterances = [utterance for found, _, _ in outputs for utterance in found]
    if not utterances:
        return None
    config, logits = ensembles[0][0].run.config, np.concatenate([logits for _, logits, _ in outputs])
    true = np.array([u.target for u in utterances]) > 0
    multi_label = config.model.loss.multi_label and bool((true.sum(axis=1) > 1).any())
    return ViewPredictions(
        name=name,
        labels=np.array([u.label for u in utterances]),
        probabilities=softmax(logits, temperature),
        categories=config.labels.space.categories,
        groups=[u.group for u in utterances],
        languages=[u.language for u in utterances],
        genders=[u.gender for u in utterances],
        valence=np.concatenate([valence for _, _, valence in outputs]),
        true_valence=np.array([np.nan if u.valence is None else u.valence for u in utterances]),
        earlier_turns=earlier_turns,
        independent=expit(logits) if multi_label else None,
        true_independent=true if multi_label else None,
    )


def _by_seed(
    predictor: Callable[[TrainedRun, Sequence[Utterance]], UtterancePredictor],
    runs: Sequence[TrainedRun],
    utterances: Sequence[Utterance],
    folds: int | None,
    pooled: bool,
) -> list[list[Ensemble]]:
    """Returns, for each seed whose predictions are counted by themselves, the ensembles that predict its parts."""
    if folds is not None:
        parts = [[u for u in utterances if fold_of(u, folds) == i] for i in range(len(runs))]
        return [[[predictor(run, part)] for run, part in zip(runs, parts, strict=True)]]
    predictors = [predictor(run, utterances) for run in runs]
    return [[[one]] for one in predictors] if pooled else [[predictors]]


def _pooled(seeds: Sequence[ViewPredictions]) -> ViewPredictions:
    """Returns the predictions of several seeds on the same utterances as one object with a dimension for the seeds."""
    if len(seeds) == 1:
        return seeds[0]
    stacked = {
        name: np.stack([getattr(of_seed, name) for of_seed in seeds])
        for name in ("probabilities", "valence", "independent")
        if getattr(seeds[0], name) is not None
    }
    return replace(seeds[0], **stacked)


def _batches(examples: EvaluationSet, size: int) -> Iterator[list[Example]]:
    for start in range(0, len(examples), size):
        yield [examples[i] for i in range(start, min(start + size, len(examples)))]
