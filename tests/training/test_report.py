"""The report of an evaluation: metrics, tables and plots."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.domain.emotion import EKMAN7
from training.report import Report, ViewPredictions, summarize, write_report

COUNT = 42


def answers(right: float, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels that go round the categories, and probabilities of which that share names them."""
    rng = np.random.default_rng(seed)
    labels = np.arange(COUNT) % 7
    named = np.where(rng.permutation(COUNT) < right * COUNT, labels, (labels + 1) % 7)
    return labels, 0.3 * np.full((COUNT, 7), 1 / 7) + 0.7 * np.eye(7)[named]


def predictions(name: str = "tess audio", turns: int | None = None, right: float = 0.5) -> ViewPredictions:
    labels, probabilities = answers(right)
    return ViewPredictions(
        name,
        labels,
        probabilities,
        groups=[f"speaker {i // 7}" for i in range(COUNT)],
        languages=["en" if i < 28 else "ur" for i in range(COUNT)],
        genders=["female" if i % 2 else "male" for i in range(COUNT)],
        valence=np.linspace(-1, 1, COUNT),
        true_valence=np.where(np.arange(COUNT) % 3, np.linspace(-1, 1, COUNT), np.nan),
        earlier_turns=turns,
    )


def test_the_report_has_metrics_tables_and_plots(tmp_path: Path) -> None:
    written = write_report(tmp_path / "new" / "folder", [predictions()], ["the corpus does not name its speakers"])
    out = tmp_path / "new" / "folder"
    assert Report.model_validate_json((out / "metrics.json").read_text()) == written
    text = (out / "report.md").read_text()
    assert "- the corpus does not name its speakers" in text
    assert "| tess audio | 42 | 6 | 0.500 |" in text
    assert all(f"| {category} |" in text for category in EKMAN7.categories)
    plots = re.findall(r"!\[.*\]\((.*)\)", text)
    assert sorted(plots) == sorted(path.name for path in out.glob("*.png"))
    for plot in plots:
        assert (out / plot).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_table_shows_the_gap_between_languages_and_between_genders(tmp_path: Path) -> None:
    view = write_report(tmp_path, [predictions()]).views["tess audio"]
    assert {name: part.utterances for name, part in view.languages.items()} == {"en": 28, "ur": 14}
    assert {name: part.utterances for name, part in view.genders.items()} == {"female": 21, "male": 21}
    uar = {name: part.metrics.uar for name, part in view.genders.items()}
    best, worst = sorted(uar, key=uar.__getitem__, reverse=True)
    text = (tmp_path / "report.md").read_text()
    assert f"UAR {uar[best] - uar[worst]:.3f} ({best}, n=21, over {worst}, n=21)" in text
    # Urdu's 14 utterances are in the table, but are too few for a gap.
    assert "| ur | 14 |" in text
    assert text.count("Largest gap") == 1


def test_a_view_of_one_language_and_unknown_genders_has_no_parts() -> None:
    labels, probabilities = answers(0.5)
    view = summarize(ViewPredictions("a", labels, probabilities, languages=["en"] * COUNT, genders=[None] * COUNT))
    assert (view.languages, view.genders, view.valence_ccc) == ({}, {}, None)
    assert view.groups == COUNT


def test_a_plot_shows_the_metrics_by_the_number_of_earlier_turns(tmp_path: Path) -> None:
    views = [predictions(turns=turns, right=0.5 + turns / 50) for turns in (20, 0, 1)]
    report = write_report(tmp_path, [*views, predictions("meld text")])
    assert list(report.views) == [
        "tess audio, 20 earlier turns",
        "tess audio, 0 earlier turns",
        "tess audio, 1 earlier turn",
        "meld text",
    ]
    assert [path.name for path in tmp_path.glob("*by-turns*")] == ["tess-audio-by-turns.png"]
    assert "(tess-audio-by-turns.png)" in (tmp_path / "report.md").read_text()


def test_several_seeds_are_pooled_and_each_utterance_is_counted_once() -> None:
    labels, good = answers(0.9)
    bad = answers(0.3, seed=1)[1]
    view = summarize(
        ViewPredictions("a", labels, np.stack([good, bad]), valence=np.zeros((2, COUNT)), true_valence=np.ones(COUNT))
    )
    assert (view.seeds, view.utterances, view.metrics.count) == (2, COUNT, 2 * COUNT)
    accuracies = [summarize(ViewPredictions("a", labels, shares)).metrics.accuracy for shares in (good, bad)]
    assert view.metrics.accuracy == pytest.approx(np.mean(accuracies))
    low, high = view.intervals["accuracy"]
    assert (low, high) == pytest.approx((accuracies[1], accuracies[0]), abs=0.15)
    assert view.valence_ccc == 0


def test_valence_is_compared_where_it_is_known() -> None:
    assert summarize(predictions()).valence_ccc == pytest.approx(1)


def test_a_report_on_categories_other_than_ekmans(tmp_path: Path) -> None:
    shares = np.array([[0.8, 0.2], [0.4, 0.6], [0.7, 0.3]])
    write_report(tmp_path, [ViewPredictions("calls", np.array([0, 1, 1]), shares, categories=["calm", "loud"])])
    figures = json.loads((tmp_path / "metrics.json").read_text())["views"]["calls"]["metrics"]
    assert figures["confusion"] == [[1, 0], [1, 1]]
    assert set(figures["classes"]) == {"calm", "loud"}


def test_views_with_the_same_file_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="views must differ in name or earlier turns: tess audio, tess audio"):
        write_report(tmp_path, [predictions(), predictions()])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", ["groups", "languages", "genders"])
def test_attributes_of_another_length_than_the_labels_are_refused(field: str) -> None:
    labels, probabilities = answers(0.5)
    with pytest.raises(ValueError, match=f"a: 1 {field} for 42 labels"):
        ViewPredictions("a", labels, probabilities, **{field: ["x"]})  # pyright: ignore[reportArgumentType]


def test_probabilities_of_another_length_than_the_labels_are_refused() -> None:
    labels, probabilities = answers(0.5)
    with pytest.raises(ValueError, match="a: 41 probabilities for 42 labels"):
        ViewPredictions("a", labels, probabilities[1:])
