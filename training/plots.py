"""The plots of a report, as PNG files."""

# Matplotlib's methods have keyword arguments without types.
# pyright: reportUnknownMemberType=false

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from training.metrics import Interval, Metrics, Reliability, RiskCoverage

BLUE, ORANGE, GREY = "#2b6cb0", "#c05621", "#718096"


def plot_view(
    path: Path,
    title: str,
    categories: Sequence[str],
    found: Metrics,
    reliability: Reliability,
    risk_coverage: RiskCoverage,
) -> None:
    """Plot a view's confusion matrix, reliability diagram and risk-coverage curve side by side."""
    figure = Figure(figsize=(15, 5), layout="constrained")
    confusion_axes, reliability_axes, risk_axes = figure.subplots(1, 3, width_ratios=[1.15, 1, 1])
    figure.suptitle(f"{title}  (n = {found.count})", fontsize=13, fontweight="bold")
    _confusion(confusion_axes, categories, found)
    _reliability(reliability_axes, found, reliability)
    _risk_coverage(risk_axes, found, risk_coverage)
    figure.savefig(path, dpi=110)


def plot_by_earlier_turns(path: Path, title: str, points: Mapping[int, tuple[Metrics, dict[str, Interval]]]) -> None:
    """Plot the main metrics against the number of earlier turns, with their 95% intervals if all have one."""
    names = {"accuracy": "Accuracy", "weighted_f1": "Weighted F1", "macro_f1": "Macro F1", "uar": "UAR", "ece": "ECE"}
    figure = Figure(figsize=(16, 3.8), layout="constrained")
    panels = figure.subplots(1, len(names))
    figure.suptitle(f"{title}, by earlier turns of the speaker", fontsize=13, fontweight="bold")
    for axes, (name, label) in zip(panels, names.items(), strict=True):
        _curve(axes, name, points)
        _tidy(axes, label, "earlier turns", "")
    low = min(axes.get_ylim()[0] for axes in panels[:-1])
    high = max(axes.get_ylim()[1] for axes in panels[:-1])
    for axes in panels[:-1]:
        axes.set_ylim(low, high)
    panels[-1].set_ylim(0, max(0.05, 1.15 * max(found.ece for found, _ in points.values())))
    figure.savefig(path, dpi=110)


def _curve(axes: Axes, name: str, points: Mapping[int, tuple[Metrics, dict[str, Interval]]]) -> None:
    # The numbers are spaced evenly, because the metrics change more between 0 and 1 turns than between 10 and 20.
    at = np.arange(len(points))
    axes.plot(at, [getattr(found, name) for found, _ in points.values()], "o-", color=BLUE, linewidth=2)
    bands = [intervals[name] for _, intervals in points.values() if name in intervals]
    if len(bands) == len(points):
        axes.fill_between(at, *np.transpose(bands), color=BLUE, alpha=0.15, linewidth=0)
    axes.set_xticks(at, [str(turns) for turns in points])


def _confusion(axes: Axes, categories: Sequence[str], found: Metrics) -> None:
    rows = [i for i, name in enumerate(categories) if name in found.classes]
    counts = np.array(found.confusion)[rows]
    shares = counts / counts.sum(axis=1, keepdims=True)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(shares.shape):
        if counts[row, column]:
            colour = "white" if shares[row, column] > 0.55 else "#1a202c"
            text = f"{shares[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(categories)), list(categories), rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [f"{categories[i]} ({counts[k].sum()})" for k, i in enumerate(rows)])
    _tidy(axes, f"Confusion, UAR {found.uar:.3f}", "predicted", "true")
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _reliability(axes: Axes, found: Metrics, curve: Reliability) -> None:
    count = np.array(curve.count)
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="perfectly calibrated")
    axes.plot(curve.confidence, curve.accuracy, color=BLUE, linewidth=1, alpha=0.4)
    axes.scatter(curve.confidence, curve.accuracy, s=6 + 250 * count / count.max(), color=BLUE, alpha=0.6, zorder=3)
    axes.set(xlim=(0, 1.03), ylim=(-0.03, 1.03))
    axes.legend(loc="lower right", frameon=False)
    _tidy(axes, f"Reliability, ECE {found.ece:.3f}", "confidence (area of a point: answers)", "accuracy")


def _risk_coverage(axes: Axes, found: Metrics, curve: RiskCoverage) -> None:
    axes.plot(curve.coverage, curve.risk, color=ORANGE, linewidth=2)
    axes.fill_between(curve.coverage, curve.risk, color=ORANGE, alpha=0.12, linewidth=0)
    axes.axhline(1 - found.accuracy, linestyle="--", color=GREY, linewidth=1, label="if everything is answered")
    axes.set(xlim=(0, 1.01), ylim=(0, max(0.05, 1.15 * max(curve.risk))))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(loc="lower right", frameon=False)
    _tidy(
        axes,
        f"Risk and coverage, AURC {found.aurc:.3f}",
        "answered, highest confidence first",
        "wrong among the answered",
    )


def _tidy(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
