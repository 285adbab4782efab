"""SELVAS emotional: ten Korean actors, sentences whose words carry the emotion of the voice, four acted emotions.

SELVAS AI and KAIST, https://github.com/emotiontts/emotiontts_open_db, the openly published 5%, CC BY-NC-SA, for
research only. Files are named by speaker and number, as `nea00001`; the hundreds of the number are the emotion.

The publisher's list calls 201 to 300 anger and 301 to 400 sadness. The recordings say the reverse: the words of 201 to
300 are sad and those of 301 to 400 scold, and nearly all speakers speak 201 to 300 lower, slower or more quietly. The
label is the publisher's word; its category in `LABELS` is the corrected one.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from training.data.corpora.tables import rows_by_file
from training.data.utterance import Split, Utterance, ekman_target, find_recordings, implied_valence, look_up

LICENCE = "CC BY-NC-SA, research only"
SOURCE = "https://github.com/emotiontts/emotiontts_open_db (Dataset/SpeechCorpus/Emotional)"
EMOTIONS = {"0": "일반", "1": "기쁨", "2": "화남", "3": "슬픔"}
"""The publisher's words for the hundreds of the number, counted from 1 to 100."""

LABELS = {"일반": "neutral", "기쁨": "joy", "화남": "sadness", "슬픔": "anger"}
WOMEN = frozenset({"nea", "neb", "nec", "ned", "nee"})
VALIDATION_SPEAKERS = frozenset({"nee", "neo"})
"""A woman and a man; the others train. There is no published split."""

NAME = re.compile(r"([a-z]{3})00(\d{3})")


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the recordings `emotional-to-emotional/nea/wav/nea00001.wav` ..., with texts where they are published.

    Raises:
        CorpusMissing: it is not in `folder`.
        ValueError: a file's name does not follow the corpus's scheme.
    """
    table = rows_by_file(folder / "labels.tsv", "file")
    pattern = "emotional-to-emotional/*/wav/*"
    for path in find_recordings(folder, "SELVAS emotional", SOURCE, pattern):
        name = NAME.fullmatch(path.stem)
        if name is None:
            raise ValueError(f"{path.name} is not named by speaker and number as SELVAS's files are (nea00001)")
        emotion = look_up(f"{(int(name[2]) - 1) // 100}", EMOTIONS, path.name)
        yield Utterance(
            id=path.stem,
            corpus="selvas_emotional",
            language="ko",
            split=Split.validation if name[1] in VALIDATION_SPEAKERS else Split.train,
            target=ekman_target([LABELS[emotion]]),
            valence=implied_valence([LABELS[emotion]]),
            group=name[1],
            label_name=emotion,
            text=table[path.stem]["transcript"] if path.stem in table else _published_text(path),
            audio=path,
            speaker=name[1],
            gender="female" if name[1] in WOMEN else "male",
        )


def _published_text(clip: Path) -> str | None:
    for name in ("transcript", "script"):
        path = clip.parents[1] / name / f"{clip.stem}.txt"
        if path.exists():
            return path.read_text(encoding="utf-8-sig").strip()
    return None
