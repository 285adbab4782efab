"""The report of an evaluation: metrics as JSON, tables as Markdown, and plots."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from shared.domain.emotion import EKMAN7
from training import plots
from training.metrics import (
    Interval,
    Metrics,
    MultiLabelMetrics,
    bootstrap_intervals,
    concordance,
    metrics,
    multilabel_metrics,
    reliability,
    risk_coverage,
)

MIN_UTTERANCES = 20
"""How many utterances a language or gender needs to be compared with others."""


@dataclass(frozen=True)
class ViewPredictions:
    """The predictions and the true labels of one view of a corpus.

    Attributes:
        name: the name of the view, such as `ravdess audio`.
        labels: the true categories as indexes, shape [count].
        probabilities: shape [count, categories], or of several seeds [seeds, count, categories].
        groups: the speaker or dialogue of each utterance, which intervals resample first; None if there are none.
        languages: the language of each utterance; None where it is unknown.
        genders: the gender of each speaker; None where it is unknown.
        valence: the predicted valence, shape [count] or [seeds, count].
        true_valence: shape [count]; NaN where it is unknown.
        earlier_turns: the number of earlier turns in the speakers' baselines, if it was varied.
        independent: with several true categories, the independent probability of each, shaped as `probabilities`.
        true_independent: whether each category is true, shape [count, categories].

    Raises:
        ValueError: an attribute has another length than the labels.
    """

    name: str
    labels: NDArray[np.integer]
    probabilities: NDArray[np.floating]
    categories: Sequence[str] = EKMAN7.categories
    groups: Sequence[str] | None = None
    languages: Sequence[str | None] | None = None
    genders: Sequence[str | None] | None = None
    valence: NDArray[np.floating] | None = None
    true_valence: NDArray[np.floating] | None = None
    earlier_turns: int | None = None
    independent: NDArray[np.floating] | None = None
    true_independent: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        lengths = {"probabilities": self.probabilities.shape[-2]}
        for name in ("groups", "languages", "genders", "true_valence", "true_independent"):
            if (values := getattr(self, name)) is not None:
                lengths[name] = len(values)
        for name, length in lengths.items():
            if length != len(self.labels):
                raise ValueError(f"{self.name}: {length} {name} for {len(self.labels)} labels")

    @property
    def label(self) -> str:
        """The name, and the number of earlier turns if it was varied."""
        turns = self.earlier_turns
        return self.name if turns is None else f"{self.name}, {turns} earlier turn{'s' if turns != 1 else ''}"

    @property
    def seeds(self) -> int:
        """How many seeds made predictions."""
        return len(self.probabilities) if self.probabilities.ndim == 3 else 1

    @property
    def pooled(self) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
        """Labels and probabilities with the utterances of all seeds in one dimension."""
        return np.tile(self.labels, self.seeds), self.probabilities.reshape(-1, len(self.categories))


class MetricsSummary(BaseModel):
    """The metrics of some utterances with their 95% intervals by name; the predictions of all seeds are pooled."""

    utterances: int
    groups: int
    metrics: Metrics
    intervals: dict[str, Interval]
    valence_ccc: float | None = None
    multi_label: MultiLabelMetrics | None = None


class ViewSummary(MetricsSummary):
    """The metrics of a view, and of its parts by language and by gender if there are several."""

    name: str
    earlier_turns: int | None
    seeds: int
    languages: dict[str, MetricsSummary]
    genders: dict[str, MetricsSummary]


class Report(BaseModel):
    """The content of `metrics.json`: every view by its label."""

    views: dict[str, ViewSummary]
    notes: tuple[str, ...]


def write_report(out: Path, views: Sequence[ViewPredictions], notes: Sequence[str] = ()) -> Report:
    """Write `metrics.json`, `report.md` and a plot of every view to the folder `out`, and return the report.

    A further plot shows the metrics by the number of earlier turns, if views of one name differ in it.

    Raises:
        ValueError: two views would have the same file name.
    """
    files = {_plot_file(view.label): view for view in views}
    if len(files) < len(views):
        raise ValueError(f"views must differ in name or earlier turns: {', '.join(view.label for view in views)}")
    out.mkdir(parents=True, exist_ok=True)
    report = Report(views={view.label: summarize(view) for view in views}, notes=tuple(notes))
    for file, view in files.items():
        labels, probabilities = view.pooled
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        found = report.views[view.label].metrics
        curves = reliability(labels, probabilities), risk_coverage(confidence, right)
        plots.plot_view(out / file, view.label, view.categories, found, *curves)
    for name, by_turns in _by_turns(report).items():
        points = {turns: (found.metrics, found.intervals) for turns, found in by_turns.items()}
        plots.plot_by_earlier_turns(out / _turns_file(name), name, points)
    (out / "metrics.json").write_text(report.model_dump_json(indent=1), encoding="utf-8")
    (out / "report.md").write_text(_markdown(report), encoding="utf-8")
    return report


def summarize(view: ViewPredictions) -> ViewSummary:
    """Returns the metrics of a view and of its parts."""
    whole = _summary(view, np.ones(len(view.labels), dtype=bool))
    return ViewSummary(
        **dict(whole),
        name=view.name,
        earlier_turns=view.earlier_turns,
        seeds=view.seeds,
        languages=_parts(view, view.languages),
        genders=_parts(view, view.genders),
    )


def _parts(view: ViewPredictions, values: Sequence[str | None] | None) -> dict[str, MetricsSummary]:
    """Returns the metrics of the utterances of each value, if there are several values."""
    known = sorted({value for value in values or () if value is not None})
    if values is None or len(known) < 2:
        return {}
    return {value: _summary(view, np.array([other == value for other in values])) for value in known}


def _summary(view: ViewPredictions, chosen: NDArray[np.bool_]) -> MetricsSummary:
    labels, probabilities = view.labels[chosen], view.probabilities[..., chosen, :]
    groups = None if view.groups is None else np.asarray(view.groups)[chosen].tolist()
    flat = probabilities.reshape(-1, len(view.categories))
    return MetricsSummary(
        utterances=len(labels),
        groups=len(labels) if groups is None else len(set(groups)),
        metrics=metrics(np.tile(labels, view.seeds), flat, view.categories),
        intervals=bootstrap_intervals(labels, probabilities, groups),
        valence_ccc=_valence_ccc(view, chosen),
        multi_label=_multi_label(view, chosen),
    )


def _valence_ccc(view: ViewPredictions, chosen: NDArray[np.bool_]) -> float | None:
    if view.valence is None or view.true_valence is None:
        return None
    predicted = view.valence[..., chosen]
    found = concordance(np.broadcast_to(view.true_valence[chosen], predicted.shape), predicted)
    return None if np.isnan(found) else found


def _multi_label(view: ViewPredictions, chosen: NDArray[np.bool_]) -> MultiLabelMetrics | None:
    if view.independent is None or view.true_independent is None:
        return None
    true = np.tile(view.true_independent[chosen], (view.seeds, 1))
    return multilabel_metrics(true, view.independent[..., chosen, :].reshape(true.shape))


def _by_turns(report: Report) -> dict[str, dict[int, ViewSummary]]:
    """Returns, by name, the views that were measured with several numbers of earlier turns, sorted by them."""
    by_name: dict[str, dict[int, ViewSummary]] = {}
    for found in report.views.values():
        if found.earlier_turns is not None:
            by_name.setdefault(found.name, {})[found.earlier_turns] = found
    return {name: dict(sorted(views.items())) for name, views in by_name.items() if len(views) > 1}


def _markdown(report: Report) -> str:
    parts = [
        "# Evaluation",
        "",
        *(f"- {note}" for note in report.notes),
        "",
        *_overview(report),
        "",
        *_multi_label_tables(report),
    ]
    for name in _by_turns(report):
        parts += [f"## {name}, by earlier turns", "", f"![{name}, by earlier turns]({_turns_file(name)})", ""]
    for label, view in report.views.items():
        parts += [f"## {label}", "", f"![{label}]({_plot_file(label)})", "", *_classes(view.metrics), ""]
        parts += _gap_tables("language", view.languages) + _gap_tables("gender", view.genders)
    return "\n".join(parts).rstrip() + "\n"


def _overview(report: Report) -> list[str]:
    columns = ["view", "n", "groups", "accuracy", "weighted F1", "macro F1", "UAR", "ECE", "AURC", "valence CCC"]
    rows = [
        [
            label,
            view.utterances,
            view.groups,
            _share(view.metrics.accuracy),
            _with_interval(view, "weighted_f1"),
            _share(view.metrics.macro_f1),
            _with_interval(view, "uar"),
            _share(view.metrics.ece),
            _share(view.metrics.aurc),
            "" if view.valence_ccc is None else _share(view.valence_ccc),
        ]
        for label, view in report.views.items()
    ]
    explained = (
        "The brackets are 95% bootstrap intervals: groups (speakers or dialogues) are drawn with replacement"
        + (", and seeds" if any(view.seeds > 1 for view in report.views.values()) else "")
        + ", then the utterances within each. Few groups say little about others."
    )
    return [*_table(columns, rows), "", explained]


def _multi_label_tables(report: Report) -> list[str]:
    """Returns a table of the views in which an utterance may have several categories."""
    found = {label: view.multi_label for label, view in report.views.items() if view.multi_label is not None}
    if not found:
        return []
    rows = [
        [label, of.count, _share(of.micro_f1), _share(of.macro_f1), _share(of.ranking_precision)]
        for label, of in found.items()
    ]
    explained = (
        "Each category is predicted independently, at a probability of 0.5 or more; the ranking needs no threshold."
    )
    columns = ["view", "n", "micro F1", "macro F1", "label-ranking average precision"]
    return ["## Several categories per utterance", "", *_table(columns, rows), "", explained, ""]


def _classes(found: Metrics) -> list[str]:
    rows = [
        [name, _share(of.precision), _share(of.recall), _share(of.f1), of.support] for name, of in found.classes.items()
    ]
    return _table(["category", "precision", "recall", "F1", "support"], rows)


def _gap_tables(attribute: str, parts: dict[str, MetricsSummary]) -> list[str]:
    """Returns a table of the parts, and the gap between the best and the worst."""
    if not parts:
        return []
    rows = [
        [name, part.utterances, _with_interval(part, "weighted_f1"), _with_interval(part, "uar")]
        for name, part in parts.items()
    ]
    lines = [*_table([attribute, "n", "weighted F1", "UAR"], rows), ""]
    known = {name: part for name, part in parts.items() if part.utterances >= MIN_UTTERANCES}
    if len(known) < 2:
        return lines
    gaps = [_gap("weighted F1", known, lambda found: found.weighted_f1), _gap("UAR", known, lambda found: found.uar)]
    return [*lines, f"Largest gap among those with {MIN_UTTERANCES} utterances or more: {'; '.join(gaps)}.", ""]


def _gap(title: str, parts: dict[str, MetricsSummary], metric: Callable[[Metrics], float]) -> str:
    ordered = sorted(parts, key=lambda name: metric(parts[name].metrics))
    best, worst = ordered[-1], ordered[0]
    width = metric(parts[best].metrics) - metric(parts[worst].metrics)
    return f"{title} {_share(width)} ({best}, n={parts[best].utterances}, over {worst}, n={parts[worst].utterances})"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def _with_interval(summary: MetricsSummary, name: str) -> str:
    value = _share(getattr(summary.metrics, name))
    if name not in summary.intervals:
        return value
    low, high = summary.intervals[name]
    return f"{value} [{_share(low)}, {_share(high)}]"


def _share(value: float) -> str:
    return f"{value:.3f}"


def _plot_file(label: str) -> str:
    return re.sub(r"\W+", "-", label).strip("-") + ".png"


def _turns_file(name: str) -> str:
    return _plot_file(f"{name} by turns")
