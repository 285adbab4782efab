"""The recipe `classical`: support vector machine, random forest and small network on acoustic feature vectors."""

# scikit-learn has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from shared.domain.emotion import EKMAN7
from training.data.acoustic_features import AcousticTable, extract
from training.data.corpora import urdu_sindhi
from training.data.registry import load
from training.data.splits import Folding, folds, speaker_groups
from training.data.utterance import Leakage, Utterance
from training.metrics import Scores, scores

Classifier = Literal["svm", "random_forest", "mlp"]
Labels = Literal["own", "ekman7"]
Fold = tuple[AcousticTable, AcousticTable]
"""The clips to train on and the clips to test on."""


class Result(BaseModel):
    """One classifier on one feature set: mean and deviation over the folds, all folds pooled, and every fold.

    `labels` are in the order of the confusion matrices. `speakers` counts the speakers that were tested on; None if the
    corpus does not identify them, and the same speaker may have been trained on.
    """

    features: str
    classifier: Classifier
    labels: list[str]
    dimensions: int
    speakers: int | None
    mean: dict[str, float]
    deviation: dict[str, float]
    pooled: Scores
    folds: list[Scores]


class Report(BaseModel):
    """All results; from one corpus to another, each has one fold."""

    corpus: str
    test_corpus: str
    split: Folding | Literal["corpus"]
    results: list[Result]


def classical(
    data: Path,
    cache: Path,
    out: Path,
    corpus: str,
    test_corpus: str | None = None,
    features: Sequence[str] = ("egemaps",),
    classifiers: Sequence[Classifier] = ("svm",),
    labels: Labels = "own",
    split: Folding = "random",
    folds: int = 5,
    regularization: float = 10.0,
    trees: int = 500,
    hidden: Sequence[int] = (256, 128),
    seed: int = 42,
) -> None:
    """Measure each classifier on each feature set, by cross-validation within a corpus or from one corpus to another.

    The report is written after each result. Features are scaled by the mean and deviation of a fold's training clips.

    Args:
        data: The folder with the corpora.
        cache: The folder that keeps the extracted features.
        out: The JSON file of the report.
        corpus: The corpus to train on: any with recordings, or `urdu_syed` or `sindhi_syed`, which have features only.
        test_corpus: The corpus to test on, with all clips, after training on all of `corpus`. None cross-validates
            within `corpus`.
        features: `egemaps`, `compare`, `is09`, `is10`, `prosody`, or the path of an openSMILE configuration file.
        classifiers: `svm` has a radial kernel; `svm` and `random_forest` weight labels by their rarity.
        labels: The corpus's own labels, or the categories of `ekman7`; with two corpora, only labels of both are kept.
        split: Folds with equal shares of each label; `speaker` also puts no speaker into two folds.
        folds: The number of folds.
        regularization: C of the support vector machine.
        trees: The number of trees in the random forest.
        hidden: The widths of the network's layers; a tenth of the training clips decides when its training ends.
        seed: The seed of folds, trees and weights.

    Raises:
        CorpusMissing: a corpus is not in its folder.
        Leakage: `corpus` and `test_corpus` are the same.
        ValueError: a name is unknown, the corpus does not identify its speakers, or the corpora have fewer than two
            labels in common.
    """
    if corpus == test_corpus:
        raise Leakage(f"{corpus} is both trained on and tested on: leave out test_corpus to cross-validate within it")
    models: dict[Classifier, ClassifierMixin] = {
        "svm": SVC(C=regularization, class_weight="balanced"),
        "random_forest": RandomForestClassifier(trees, class_weight="balanced", random_state=seed),
        "mlp": MLPClassifier(tuple(hidden), max_iter=400, early_stopping=True, random_state=seed),
    }
    kind = "corpus" if test_corpus else split
    report = Report(corpus=corpus, test_corpus=test_corpus or corpus, split=kind, results=[])
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in features:
        table = _table(data, cache, corpus, name, labels)
        other = _table(data, cache, test_corpus, name, labels) if test_corpus else None
        parts = [_common_labels(table, other)] if other else _folds(table, split, folds, seed)
        for classifier in classifiers:
            report.results.append(_result(name, classifier, models[classifier], parts))
            out.write_text(report.model_dump_json(indent=1))
    _print_table(report)


def _table(data: Path, cache: Path, corpus: str, features: str, labels: Labels) -> AcousticTable:
    """Returns the clips of a corpus with the chosen kind of label; those without such a label are left out."""
    if corpus in urdu_sindhi.CORPORA:
        table = urdu_sindhi.load(data / urdu_sindhi.FOLDER, corpus, features)
    else:
        table = _extracted(load(data, [corpus], scheme=None), features, cache / corpus)
    if labels == "own":
        return table
    return replace(table, labels=table.categories)[np.isin(table.categories, EKMAN7.categories)]


def _extracted(utterances: Sequence[Utterance], features: str, cache: Path) -> AcousticTable:
    return AcousticTable(
        features=extract(utterances, features, cache),
        labels=np.array([utterance.label_name for utterance in utterances]),
        categories=np.array([EKMAN7.categories[u.label] if u.target else "" for u in utterances]),
        speakers=None if (speakers := speaker_groups(utterances)) is None else np.array(speakers),
    )


def _folds(table: AcousticTable, split: Folding, count: int, seed: int) -> list[Fold]:
    speakers = None if table.speakers is None else table.speakers.tolist()
    return [(table[train], table[test]) for train, test in folds(table.labels, speakers, split, count, seed)]


def _common_labels(table: AcousticTable, other: AcousticTable) -> Fold:
    """Returns the clips of both corpora whose label both have."""
    names = np.intersect1d(table.labels, other.labels)
    if len(names) < 2:
        raise ValueError(
            f"the corpora have {', '.join(names) or 'no label'} in common, of {', '.join(np.unique(table.labels))} and "
            f"{', '.join(np.unique(other.labels))}: at least two labels are needed; try labels: ekman7"
        )
    return table[np.isin(table.labels, names)], other[np.isin(other.labels, names)]


def _predict(pipeline: Pipeline, trained: AcousticTable, tested: AcousticTable) -> NDArray[np.str_]:
    """Returns the label of each tested clip, by the pipeline fitted to the other clips."""
    # fit() discards what was fitted before, the scaler's statistics too, so folds do not affect one another.
    return pipeline.fit(trained.features, trained.labels).predict(tested.features)


def _result(features: str, classifier: Classifier, model: ClassifierMixin, parts: Sequence[Fold]) -> Result:
    pipeline = make_pipeline(StandardScaler(), model)
    names = np.unique(np.concatenate([table.labels for part in parts for table in part]))
    pairs = [
        (tested.labels, _predict(pipeline, trained, tested))
        for trained, tested in track(parts, f"{features}, {classifier}")
    ]
    indexes = [(np.searchsorted(names, true), np.searchsorted(names, predicted)) for true, predicted in pairs]
    found = [scores(true, predicted, names.tolist()) for true, predicted in indexes]
    true, predicted = (np.concatenate(side) for side in zip(*indexes, strict=True))
    return Result(
        features=features,
        classifier=classifier,
        labels=names.tolist(),
        dimensions=parts[0][0].features.shape[1],
        speakers=_speakers(parts),
        mean=_statistic(found, np.mean),
        deviation=_statistic(found, np.std),
        pooled=scores(true, predicted, names.tolist()),
        folds=found,
    )


def _statistic(folds: Sequence[Scores], statistic: Callable[[list[float]], np.floating]) -> dict[str, float]:
    names = ("accuracy", "weighted_f1", "macro_f1", "uar")
    return {name: float(statistic([getattr(fold, name) for fold in folds])) for name in names}


def _speakers(parts: Sequence[Fold]) -> int | None:
    tested = [tested.speakers for _, tested in parts if tested.speakers is not None]
    return len(np.unique(np.concatenate(tested))) if tested else None


def _print_table(report: Report) -> None:
    title = f"{report.corpus} -> {report.test_corpus}, {report.split}"
    table = Table("features", "classifier", "UAR", "weighted F1", "accuracy", title=title)
    for result in report.results:
        figures = [f"{result.mean[n]:.3f} ± {result.deviation[n]:.3f}" for n in ("uar", "weighted_f1", "accuracy")]
        table.add_row(result.features, result.classifier, *figures)
    Console().print(table)
