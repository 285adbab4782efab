"""The report of an evaluation: figures as JSON, tables as Markdown, and pictures."""

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

ENOUGH = 20
"""Utterances that a language or gender must have for its distance from others to say something."""


@dataclass(frozen=True)
class Predictions:
    """What was read in one view of a corpus, and what is true there.

    Attributes:
        name: of the view, such as `ravdess voice`.
        labels: the true categories as indexes, shape [count].
        probabilities: shape [count, categories], or of several seeds [seeds, count, categories].
        groups: of each utterance, the speaker or the dialogue, which intervals draw first; None if there are none.
        languages: of each utterance, None where unknown.
        genders: likewise.
        valence: predicted, shape [count] or [seeds, count].
        true_valence: shape [count]; NaN where unknown.
        earlier_turns: how many earlier turns of the speaker the readings rest on, where that was varied.
        each: where several categories may be true, the probability of each by itself, shaped as `probabilities`.
        true_each: whether each is true, shape [count, categories].

    Raises:
        ValueError: something has another length than the labels.
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
    each: NDArray[np.floating] | None = None
    true_each: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        lengths = {"probabilities": self.probabilities.shape[-2]}
        for name in ("groups", "languages", "genders", "true_valence", "true_each"):
            if (values := getattr(self, name)) is not None:
                lengths[name] = len(values)
        for name, length in lengths.items():
            if length != len(self.labels):
                raise ValueError(f"{self.name}: {length} {name} for {len(self.labels)} labels")

    @property
    def label(self) -> str:
        """The name, and how many earlier turns there are, where that was varied."""
        turns = self.earlier_turns
        return self.name if turns is None else f"{self.name}, {turns} earlier turn{'s' if turns != 1 else ''}"

    @property
    def seeds(self) -> int:
        return len(self.probabilities) if self.probabilities.ndim == 3 else 1

    @property
    def pooled(self) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
        """Labels and probabilities with every seed's utterances one after another."""
        return np.tile(self.labels, self.seeds), self.probabilities.reshape(-1, len(self.categories))


class Figures(BaseModel):
    """The metrics of some utterances with their 95% intervals by name; several seeds' answers are pooled."""

    utterances: int
    groups: int
    metrics: Metrics
    intervals: dict[str, Interval]
    valence_ccc: float | None = None
    multi_label: MultiLabelMetrics | None = None


class View(Figures):
    """The figures of a view, and of its parts by language and by gender where there are several."""

    name: str
    earlier_turns: int | None
    seeds: int
    languages: dict[str, Figures]
    genders: dict[str, Figures]


class Report(BaseModel):
    """What `metrics.json` holds: every view by its label."""

    views: dict[str, View]
    notes: tuple[str, ...]


def write_report(out: Path, views: Sequence[Predictions], notes: Sequence[str] = ()) -> Report:
    """Write `metrics.json`, `report.md` and a picture of every view to the folder `out`.

    Where views of one name differ in their earlier turns, a picture shows every metric by them.

    Raises:
        ValueError: two views would have the same files.
    """
    files = {_file(view.label): view for view in views}
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


def summarize(view: Predictions) -> View:
    """The figures of a view and of its parts."""
    whole = _figures(view, np.ones(len(view.labels), dtype=bool))
    return View(
        **dict(whole),
        name=view.name,
        earlier_turns=view.earlier_turns,
        seeds=view.seeds,
        languages=_parts(view, view.languages),
        genders=_parts(view, view.genders),
    )


def _parts(view: Predictions, values: Sequence[str | None] | None) -> dict[str, Figures]:
    """The figures of the utterances of each value, if there are several values."""
    known = sorted({value for value in values or () if value is not None})
    if values is None or len(known) < 2:
        return {}
    return {value: _figures(view, np.array([other == value for other in values])) for value in known}


def _figures(view: Predictions, chosen: NDArray[np.bool_]) -> Figures:
    labels, probabilities = view.labels[chosen], view.probabilities[..., chosen, :]
    groups = None if view.groups is None else np.asarray(view.groups)[chosen].tolist()
    flat = probabilities.reshape(-1, len(view.categories))
    return Figures(
        utterances=len(labels),
        groups=len(labels) if groups is None else len(set(groups)),
        metrics=metrics(np.tile(labels, view.seeds), flat, view.categories),
        intervals=bootstrap_intervals(labels, probabilities, groups),
        valence_ccc=_valence_ccc(view, chosen),
        multi_label=_multi_label(view, chosen),
    )


def _valence_ccc(view: Predictions, chosen: NDArray[np.bool_]) -> float | None:
    if view.valence is None or view.true_valence is None:
        return None
    predicted = view.valence[..., chosen]
    found = concordance(np.broadcast_to(view.true_valence[chosen], predicted.shape), predicted)
    return None if np.isnan(found) else found


def _multi_label(view: Predictions, chosen: NDArray[np.bool_]) -> MultiLabelMetrics | None:
    if view.each is None or view.true_each is None:
        return None
    true = np.tile(view.true_each[chosen], (view.seeds, 1))
    return multilabel_metrics(true, view.each[..., chosen, :].reshape(true.shape))


def _by_turns(report: Report) -> dict[str, dict[int, View]]:
    """By name, the views that were measured after different numbers of earlier turns, in their order."""
    varied: dict[str, dict[int, View]] = {}
    for found in report.views.values():
        if found.earlier_turns is not None:
            varied.setdefault(found.name, {})[found.earlier_turns] = found
    return {name: dict(sorted(views.items())) for name, views in varied.items() if len(views) > 1}


def _markdown(report: Report) -> str:
    parts = ["# Evaluation", "", *(f"- {note}" for note in report.notes), "", *_overview(report), "", *_several(report)]
    for name in _by_turns(report):
        parts += [f"## {name}, by earlier turns", "", f"![{name}, by earlier turns]({_turns_file(name)})", ""]
    for label, view in report.views.items():
        parts += [f"## {label}", "", f"![{label}]({_file(label)})", "", *_classes(view.metrics), ""]
        parts += _gaps("language", view.languages) + _gaps("gender", view.genders)
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
        "In brackets 95% bootstrap intervals: groups (speakers or dialogues) are drawn with replacement"
        + (", and seeds" if any(view.seeds > 1 for view in report.views.values()) else "")
        + ", then the utterances within each. Few groups say little of others."
    )
    return [*_table(columns, rows), "", explained]


def _several(report: Report) -> list[str]:
    """A table of the views in which several categories may be true."""
    found = {label: view.multi_label for label, view in report.views.items() if view.multi_label is not None}
    if not found:
        return []
    rows = [
        [label, of.count, _share(of.micro_f1), _share(of.macro_f1), _share(of.ranking_precision)]
        for label, of in found.items()
    ]
    explained = "Each category by itself, named where its probability is 0.5 or more; the ranking needs no threshold."
    columns = ["view", "n", "micro F1", "macro F1", "label-ranking average precision"]
    return ["## Several categories at once", "", *_table(columns, rows), "", explained, ""]


def _classes(found: Metrics) -> list[str]:
    rows = [
        [name, _share(of.precision), _share(of.recall), _share(of.f1), of.support] for name, of in found.classes.items()
    ]
    return _table(["category", "precision", "recall", "F1", "support"], rows)


def _gaps(what: str, parts: dict[str, Figures]) -> list[str]:
    """A table of the parts, and how far the best is from the worst."""
    if not parts:
        return []
    rows = [
        [name, part.utterances, _with_interval(part, "weighted_f1"), _with_interval(part, "uar")]
        for name, part in parts.items()
    ]
    lines = [*_table([what, "n", "weighted F1", "UAR"], rows), ""]
    known = {name: part for name, part in parts.items() if part.utterances >= ENOUGH}
    if len(known) < 2:
        return lines
    gaps = [_gap("weighted F1", known, lambda found: found.weighted_f1), _gap("UAR", known, lambda found: found.uar)]
    return [*lines, f"Largest gap, of those with {ENOUGH} utterances or more: {'; '.join(gaps)}.", ""]


def _gap(title: str, parts: dict[str, Figures], figure: Callable[[Metrics], float]) -> str:
    ordered = sorted(parts, key=lambda name: figure(parts[name].metrics))
    best, worst = ordered[-1], ordered[0]
    width = figure(parts[best].metrics) - figure(parts[worst].metrics)
    return f"{title} {_share(width)} ({best}, n={parts[best].utterances}, over {worst}, n={parts[worst].utterances})"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def _with_interval(figures: Figures, name: str) -> str:
    value = _share(getattr(figures.metrics, name))
    if name not in figures.intervals:
        return value
    low, high = figures.intervals[name]
    return f"{value} [{_share(low)}, {_share(high)}]"


def _share(value: float) -> str:
    return f"{value:.3f}"


def _file(label: str) -> str:
    return re.sub(r"\W+", "-", label).strip("-") + ".png"


def _turns_file(name: str) -> str:
    return _file(f"{name} by turns")
