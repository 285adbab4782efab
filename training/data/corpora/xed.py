"""XED: film subtitles in English and Finnish, and by projection in thirty more languages; Plutchik's eight emotions.

Öhman et al. 2020, https://github.com/Helsinki-NLP/XED, CC BY 4.0. Anticipation and trust have no category in
`EKMAN7`, so lines with no other emotion have no target.
"""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from training.data.utterance import Utterance, ekman_target, implied_valence, require_path, split_by_digest

LICENCE = "CC BY 4.0"
SOURCE = "https://github.com/Helsinki-NLP/XED"
EMOTIONS = {
    "1": "anger",
    "2": "anticipation",
    "3": "disgust",
    "4": "fear",
    "5": "joy",
    "6": "sadness",
    "7": "surprise",
    "8": "trust",
}
LABELS = {
    "anger": "anger",
    "anticipation": None,
    "disgust": "disgust",
    "fear": "fear",
    "joy": "joy",
    "neutral": "neutral",
    "sadness": "sadness",
    "surprise": "surprise",
    "trust": None,
}
NOT_A_CODE = {"br": "pt"}
"""The file of Brazilian Portuguese is named by a region and not by a language."""
UNSUPPORTED = frozenset({"cn", "tw", "zh", "ja", "th", "he"})
"""Languages whose script is not in the vocabulary of the bundle `compact`."""


def load(folder: Path, limit: int = 1000) -> Iterator[Utterance]:
    """Yields annotated and projected lines, at most `limit` of each projected language and of each language's neutral
    lines.

    Lines without a target do not count towards the limit.

    Raises:
        CorpusMissing: it is not in `folder`.
    """
    require_path(folder / "en-annotated.tsv", "XED", SOURCE)
    for language in ("en", "fi"):
        yield from _labelled(folder / f"{language}-annotated.tsv", language, None)
        yield from _neutral(folder / f"neu_{language}.txt", language, limit)
    for path in sorted(folder.glob("*-projections*.tsv")):
        code = path.name.split("-")[0]
        if code not in UNSUPPORTED | {"en", "fi"}:
            yield from _labelled(path, NOT_A_CODE.get(code, code), limit)


def _labelled(path: Path, language: str, limit: int | None) -> Iterator[Utterance]:
    count = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        text, _, numbers = line.rpartition("\t")
        emotions = [EMOTIONS[number.strip()] for number in numbers.split(",") if number.strip() in EMOTIONS]
        if text.strip() and emotions:
            utterance = _utterance(text, language, emotions)
            yield utterance
            count += utterance.target is not None
        if count == limit:
            return


def _neutral(path: Path, language: str, limit: int) -> Iterator[Utterance]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines()[:limit]:
            if text := line.split("\t")[1].strip():
                yield _utterance(text, language, ["neutral"])


def _utterance(text: str, language: str, emotions: list[str]) -> Utterance:
    digest = sha256(text.strip().encode()).hexdigest()
    categories = [LABELS[emotion] for emotion in emotions]
    return Utterance(
        id=digest,
        corpus="xed",
        language=language,
        split=split_by_digest(text.strip()),
        target=ekman_target(categories),
        valence=implied_valence(categories),
        group=digest,
        label_name=", ".join(emotions),
        text=text.strip(),
    )
