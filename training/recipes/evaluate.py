"""The recipe `evaluate`: measures trained runs on held-out utterances and writes a report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from training.data.splits import split_notes
from training.data.utterance import Split
from training.predictions import EARLIER_TURNS, predict_views
from training.report import Report, write_report
from training.runs import TrainedRun


def evaluate(
    data: Path,
    runs: Sequence[Path],
    out: Path,
    cache: Path | None = None,
    split: Split = Split.validation,
    folds: int | None = None,
    pooled: bool = False,
    earlier_turns: Sequence[int] = EARLIER_TURNS,
    same_emotion: bool = False,
    unseen: Sequence[str] | None = None,
    accelerator: str = "auto",
) -> None:
    """Write a report on every view: the metrics as JSON, tables as Markdown, and plots.

    Args:
        data: The folder with the corpora.
        runs: Folders written by `train`. Their logits are averaged; with `folds` there is one run for each fold, in
            order; with `pooled` each run is counted by itself.
        out: The folder for `metrics.json`, `report.md` and the plots.
        cache: A folder written by `cache_features`, for runs that were trained on one.
        split: The split to measure, unless `folds` is given.
        folds: The number of folds of a cross-validation: every utterance with audio is predicted by the run that did
            not train on its speaker.
        pooled: Count the predictions of every run, so that the intervals also cover what another seed would give.
        earlier_turns: The sizes of the baselines to measure, for models that read audio relative to a baseline.
        same_emotion: Make baselines of utterances with the emotion of the one that is predicted, as far as there are
            any. This is the hardest baseline, that of a speaker who was angry from the first turn on.
        unseen: Corpora that the runs were not trained on; all of their utterances are predicted instead of the split.
        accelerator: Lightning's accelerator, such as cpu or gpu.

    Raises:
        ValueError: both `folds` and `pooled` are given, or a corpus in `unseen` was trained on.
    """
    if folds is not None and pooled:
        raise ValueError("give either folds, where each run predicts its fold, or pooled, where each predicts all")
    trained = [_on_unseen(unseen, TrainedRun.load(run, accelerator)) for run in runs]
    config = trained[0].config
    utterances = config.utterances(data)
    measured = utterances if folds is not None else [u for u in utterances if unseen or u.split is split]
    predictions = predict_views(
        trained,
        measured,
        cache=cache,
        folds=folds,
        pooled=pooled,
        earlier_turns=earlier_turns,
        same_emotion=same_emotion,
    )
    part = f"All of {', '.join(unseen)}, which was not trained on" if unseen else f"The {split} split"
    baseline = ["All earlier turns have the emotion of the turn that is predicted."] if same_emotion else []
    notes = [_predicted_by(part, folds, pooled, len(runs)), *baseline, "Before calibration: the temperature is 1."]
    print_summary(write_report(out, predictions, [*notes, *split_notes(utterances, config.split.strategy)]))


def print_summary(report: Report) -> None:
    """Print the most important metrics of every view."""
    for name, view in report.views.items():
        found = view.metrics
        print(f"{name:34} n={found.count:5}  WF1 {found.weighted_f1:.3f}  UAR {found.uar:.3f}  ECE {found.ece:.3f}")


def _on_unseen(unseen: Sequence[str] | None, run: TrainedRun) -> TrainedRun:
    if unseen is None:
        return run
    if known := sorted(set(unseen) & set(run.config.corpora)):
        raise ValueError(f"{', '.join(known)} was trained on, so it is not unseen")
    return replace(run, config=run.config.model_copy(update={"corpora": tuple(unseen)}))


def _predicted_by(part: str, folds: int | None, pooled: bool, runs: int) -> str:
    if folds is not None:
        return (
            f"Cross-validation over speakers in {folds} folds: each is predicted by the run that did not train on it."
        )
    if pooled:
        return f"{part}, predicted by each of {runs} runs; the metrics count all predictions."
    return f"{part}, predicted by {'one run' if runs == 1 else f'the average of {runs} runs'}."
