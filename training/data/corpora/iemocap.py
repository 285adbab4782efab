"""IEMOCAP: ten American actors in pairs, five sessions of scripted and improvised dialogues.

Busso et al. 2008, https://sail.usc.edu/iemocap, by agreement with the University of Southern California. Most work
reads four classes of it, with excitement as happiness: the label scheme `four`. Frustration, other feelings and what
the annotators did not agree on (`xxx`) have no place among the seven categories, but are turns of their dialogues.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from training.data.utterance import Split, Utterance, existing, mapped, target

LICENCE = "by agreement with the University of Southern California, research use"
SOURCE = "https://sail.usc.edu/iemocap (IEMOCAP_full_release)"
LABELS = {
    "ang": "anger",
    "dis": "disgust",
    "exc": "joy",
    "fea": "fear",
    "fru": None,
    "hap": "joy",
    "neu": "neutral",
    "oth": None,
    "sad": "sadness",
    "sur": "surprise",
    "xxx": None,
}
TURN = re.compile(r"\[(?P<start>[\d.]+) - [\d.]+\]\t(?P<id>\S+)\t(?P<label>\w+)\t\[(?P<valence>[\d.]+),.*")
"""A line of the evaluation: start and end in seconds, the turn, its label; valence and two more from 1 to 5."""

WORDS = re.compile(r"(Ses\S+) \[[^]]*\]: (.*)")


class Turn(NamedTuple):
    start: float
    id: str
    label: str
    valence: float


def split_of(session: int) -> Split:
    """By session, and so by speaker: 4 validates, 5 tests, the rest train; there is no published split."""
    return {4: Split.validation, 5: Split.test}.get(session, Split.train)


def load(folder: Path) -> Iterator[Utterance]:
    """The full release: `Session1` to `Session5`, each with `dialog` and `sentences`.

    Two speakers share the dialogues of a session, so it is the group.

    Raises:
        CorpusMissing: a session is not at `folder`.
        ValueError: a turn has a label that the corpus does not know.
    """
    for session in range(1, 6):
        root = existing(folder / f"Session{session}", "IEMOCAP", SOURCE)
        for evaluation in sorted((root / "dialog" / "EmoEvaluation").glob("Ses*.txt")):
            words = _words(root / "dialog" / "transcriptions" / evaluation.name)
            for position, turn in enumerate(_turns(evaluation)):
                yield _utterance(root, session, evaluation.stem, position, turn, words.get(turn.id))


def _utterance(root: Path, session: int, dialogue: str, position: int, turn: Turn, text: str | None) -> Utterance:
    sex = turn.id.rsplit("_", 1)[1][0]
    return Utterance(
        id=turn.id,
        corpus="iemocap",
        language="en",
        split=split_of(session),
        target=target([mapped(turn.label, LABELS, turn.id)]),
        valence=(turn.valence - 3) / 2,
        group=f"session {session}",
        label_name=turn.label,
        text=text,
        audio=root / "sentences" / "wav" / dialogue / f"{turn.id}.wav",
        speaker=f"Ses{session:02}{sex}",
        gender="female" if sex == "F" else "male",
        dialogue=dialogue,
        position=position,
    )


def _turns(evaluation: Path) -> list[Turn]:
    """In the order of time, which the file does not keep."""
    found = (TURN.fullmatch(line.rstrip()) for line in _lines(evaluation))
    return sorted(Turn(float(m["start"]), m["id"], m["label"], float(m["valence"])) for m in found if m)


def _words(transcription: Path) -> dict[str, str]:
    lines = _lines(existing(transcription, "IEMOCAP", SOURCE))
    return {found[1]: found[2].strip() for line in lines if (found := WORDS.match(line))}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
