"""Train on some corpora, and test on others that the model has never seen."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.data.label_schemes import LabelScheme, common, scheme_named
from training.data.registry import load
from training.data.splits import SplitPlan, notes
from training.data.utterance import Split, Utterance
from training.recipes.evaluate import EARLIER_TURNS, Trained, read_views, show
from training.recipes.train import train
from training.report import Predictions, write_report


def cross_corpus(
    data: Path,
    out: Path,
    corpora: Sequence[str],
    tested: Sequence[str],
    both_directions: bool = False,
    seeds: Sequence[int] = (0, 1, 2),
    labels: str | LabelScheme = "ekman7",
    test_split: Split | None = None,
    test_speakers: Sequence[str] | None = None,
    cache: Path | None = None,
    earlier_turns: Sequence[int] = EARLIER_TURNS,
    accelerator: str = "auto",
    **training: Any,  # noqa: ANN401 - jsonargparse finds the types in `train`
) -> None:
    """Train with every seed, and write a report on the corpora that were not trained on.

    Every seed answers for itself; the figures pool the answers, and the intervals draw seeds as well as speakers.

    Args:
        data: holds the corpora.
        out: the folder of the report, and of a folder for each direction with a run for each seed.
        corpora: which ones to train on.
        tested: which ones to test on.
        both_directions: also train on `tested` and test on `corpora`.
        seeds: of the trainings.
        labels: a label scheme or its name, of which the categories remain that both sides have.
        test_split: which of the tested corpora's utterances, as the corpora themselves are split; None is all.
        test_speakers: only what these say; None is everybody.
        cache: written by `cache_features`, with all corpora: the encoders are frozen.
        earlier_turns: how many other utterances of the speaker a voice is read against, see `evaluate`.
        accelerator: Lightning's.
        training: all else is `train`'s.

    Raises:
        ValueError: a corpus is on both sides, the sides have no two categories in common, or nothing is left to test.
    """
    if twice := sorted(set(corpora) & set(tested)):
        raise ValueError(f"{', '.join(twice)} cannot be both trained on and tested on zero-shot")
    shared = common(scheme_named(labels), [load(data, side, None) for side in (corpora, tested)])
    readings: list[Predictions] = []
    said: list[str] = [f"Zero-shot, in the categories that both sides have: {', '.join(shared.space.categories)}."]
    for known, new in [(corpora, tested), (tested, corpora)][: 1 + both_directions]:
        runs = [out / f"trained on {' '.join(known)}" / f"seed {seed}" for seed in seeds]
        for seed, run in zip(seeds, runs, strict=True):
            train(data, run, known, cache, labels=shared, seed=seed, accelerator=accelerator, **training)
        models = [Trained.load(run, accelerator) for run in runs]
        utterances = _unseen(models[0], data, new, test_split, test_speakers)
        found = read_views(models, utterances, cache=cache, pooled=True, earlier_turns=earlier_turns)
        readings += [replace(one, name=f"{' '.join(known)} to {one.name}") for one in found]
        said += notes(utterances, SplitPlan().strategy)
    show(write_report(out, readings, list(dict.fromkeys(said))))


def _unseen(
    model: Trained, data: Path, corpora: Sequence[str], split: Split | None, speakers: Sequence[str] | None
) -> list[Utterance]:
    """The utterances of other corpora, as the model reads its own."""
    run = model.run.model_copy(update={"corpora": tuple(corpora), "split": SplitPlan()})
    found = [u for u in run.utterances(data) if split in (None, u.split)]
    if speakers is not None:
        found = [u for u in found if u.speaker in speakers]
    if not found:
        raise ValueError(f"nothing of {', '.join(corpora)} is left to test: split {split}, speakers {speakers}")
    return found
