"""GoEmotions on the Ekman classes: English comments from Reddit, several labels each.

Demszky et al. 2020, https://github.com/google-research/google-research/tree/master/goemotions, Apache-2.0.
"""

from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Split, Utterance, ekman_target, implied_valence, look_up, require_path

LICENCE = "Apache-2.0"
SOURCE = "https://github.com/google-research/google-research/tree/master/goemotions, mapped by its ekman_mapping.json"
LABELS = {name: name for name in ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")}
FILES = {"train.tsv": Split.train, "dev.tsv": Split.validation, "test.tsv": Split.test}


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the comments of the TSV files (text, label numbers, comment id), with the labels' names from `labels.txt`.

    Raises:
        CorpusMissing: it is not in `folder`.
    """
    require_path(folder / "train.tsv", "GoEmotions", SOURCE)
    names = (folder / "labels.txt").read_text(encoding="utf-8").split()
    for name, split in FILES.items():
        if not (folder / name).exists():
            continue
        # Not splitlines(), which also splits at characters that occur inside comments.
        for line in (folder / name).read_text(encoding="utf-8").rstrip("\n").split("\n"):
            text, numbers, comment = line.split("\t")
            categories = [look_up(names[int(number)], LABELS, name) for number in numbers.split(",")]
            yield Utterance(
                id=comment,
                corpus="goemotions",
                language="en",
                split=split,
                target=ekman_target(categories),
                valence=implied_valence(categories),
                group=comment,
                label_name=", ".join(categories),
                text=text,
            )
