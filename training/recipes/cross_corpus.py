"""The recipe `cross_corpus`: trains on some corpora and tests on others (zero-shot)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.args import TrainerArgs
from training.data.label_schemes import LabelScheme, common_categories, scheme_named
from training.data.registry import load
from training.data.splits import SplitArgs, split_notes
from training.data.utterance import Split, Utterance
from training.predictions import EARLIER_TURNS, predict_views
from training.recipes.evaluate import print_summary
from training.recipes.train import train
from training.report import ViewPredictions, write_report
from training.runs import TrainedRun


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
    trainer: TrainerArgs = TrainerArgs(),  # noqa: B008 - frozen
    **training: Any,  # noqa: ANN401 - jsonargparse reads the types from `train`
) -> None:
    """Train with every seed, and write a report on corpora that were not trained on.

    The metrics count the predictions of every seed, and the intervals resample seeds and speakers.

    Args:
        data: The folder with the corpora.
        out: The folder for the report, and for a folder per direction with a run per seed.
        corpora: The corpora to train on.
        tested: The corpora to test on.
        both_directions: Also train on `tested` and test on `corpora`.
        seeds: The seeds to train with; they replace `trainer.seed`.
        labels: The label scheme, by name or written out; only the categories that occur on both sides are used.
        test_split: Which split of the tested corpora to predict, as their loaders split them. None predicts all.
        test_speakers: Predict these speakers only.
        cache: A folder written by `cache_features`, with all corpora; the encoders are then frozen.
        earlier_turns: The sizes of the baselines to measure, see `evaluate`.
        trainer: How long to train, and on what.
        training: All other arguments of `train`.

    Raises:
        ValueError: a corpus is on both sides, the sides have fewer than two categories in common, or nothing is left to
            test.
    """
    if twice := sorted(set(corpora) & set(tested)):
        raise ValueError(f"{', '.join(twice)} cannot be both trained on and tested on")
    common = common_categories(scheme_named(labels), [load(data, side, None) for side in (corpora, tested)])
    predictions: list[ViewPredictions] = []
    notes = [f"Zero-shot, in the categories that both sides have: {', '.join(common.space.categories)}."]
    for known, new in [(corpora, tested), (tested, corpora)][: 1 + both_directions]:
        folder = out / f"trained on {' '.join(known)}"
        for seed in seeds:
            seeded = trainer.model_copy(update={"seed": seed})
            train(data, folder / f"seed {seed}", known, cache, labels=common, trainer=seeded, **training)
        runs = [TrainedRun.load(folder / f"seed {seed}", trainer.accelerator) for seed in seeds]
        utterances = _tested_utterances(runs[0], data, new, test_split, test_speakers)
        found = predict_views(runs, utterances, cache=cache, pooled=True, earlier_turns=earlier_turns)
        predictions += [replace(view, name=f"{' '.join(known)} to {view.name}") for view in found]
        notes += split_notes(utterances, SplitArgs().strategy)
    print_summary(write_report(out, predictions, list(dict.fromkeys(notes))))


def _tested_utterances(
    run: TrainedRun, data: Path, corpora: Sequence[str], split: Split | None, speakers: Sequence[str] | None
) -> list[Utterance]:
    config = run.config.model_copy(update={"corpora": tuple(corpora), "split": SplitArgs()})
    found = [u for u in config.utterances(data) if split in (None, u.split)]
    if speakers is not None:
        found = [u for u in found if u.speaker in speakers]
    if not found:
        raise ValueError(f"nothing of {', '.join(corpora)} is left to test: split {split}, speakers {speakers}")
    return found
