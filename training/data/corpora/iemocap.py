"""IEMOCAP: ten American actors in pairs, five sessions of scripted and improvised dialogues.

Busso et al. 2008, https://sail.usc.edu/iemocap, by agreement with the University of Southern California. Most
publications use four classes of it and count excitement as happiness: the label scheme `four`. Frustration, other
emotions and turns on which the annotators did not agree (`xxx`) have no category in `EKMAN7`, but they are turns of
their dialogues.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from training.data.utterance import Split, Utterance, ekman_target, look_up, require_path

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
"""A line of an evaluation file: start and end in seconds, the turn's id, its label, and valence, activation and
dominance from 1 to 5."""

TRANSCRIPT_LINE = re.compile(r"(Ses\S+) \[[^]]*\]: (.*)")


class EvaluatedTurn(NamedTuple):
    """A turn as an evaluation file describes it; `valence` is from 1 to 5."""

    start: float
    id: str
    label: str
    valence: float


def split_of(session: int) -> Split:
    """Returns the split of a session, which no speaker leaves: 4 validates, 5 tests, the others train. There is no
    published split."""
    return {4: Split.validation, 5: Split.test}.get(session, Split.train)


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the turns of the full release: `Session1` to `Session5`, each with `dialog` and `sentences`.

    The session is the group, because its two speakers share the dialogues.

    Raises:
        CorpusMissing: a session is not in `folder`.
        ValueError: a turn has a label that is not the corpus's.
    """
    for session in range(1, 6):
        root = require_path(folder / f"Session{session}", "IEMOCAP", SOURCE)
        for evaluation in sorted((root / "dialog" / "EmoEvaluation").glob("Ses*.txt")):
            texts = _texts(root / "dialog" / "transcriptions" / evaluation.name)
            for position, turn in enumerate(_turns(evaluation)):
                yield _utterance(root, session, evaluation.stem, position, turn, texts.get(turn.id))


def _utterance(
    root: Path, session: int, dialogue: str, position: int, turn: EvaluatedTurn, text: str | None
) -> Utterance:
    sex = turn.id.rsplit("_", 1)[1][0]
    return Utterance(
        id=turn.id,
        corpus="iemocap",
        language="en",
        split=split_of(session),
        target=ekman_target([look_up(turn.label, LABELS, turn.id)]),
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


def _turns(evaluation: Path) -> list[EvaluatedTurn]:
    """Returns the turns sorted by start time; the file has them in another order."""
    found = (TURN.fullmatch(line.rstrip()) for line in _lines(evaluation))
    return sorted(EvaluatedTurn(float(m["start"]), m["id"], m["label"], float(m["valence"])) for m in found if m)


def _texts(transcription: Path) -> dict[str, str]:
    lines = _lines(require_path(transcription, "IEMOCAP", SOURCE))
    return {found[1]: found[2].strip() for line in lines if (found := TRANSCRIPT_LINE.match(line))}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
