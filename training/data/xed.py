"""XED: film subtitles in English and Finnish, and by projection in thirty more languages; Plutchik's eight emotions.

Öhman et al. 2020, https://github.com/Helsinki-NLP/XED, CC BY 4.0. Anticipation and trust have no place among the seven
categories, so lines with nothing else are left out.
"""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from training.data.corpus import Split, Utterance, existing, target, valence

LICENCE = "CC BY 4.0"
SOURCE = "https://github.com/Helsinki-NLP/XED"
LABELS = {
    "1": "anger",
    "2": None,  # anticipation
    "3": "disgust",
    "4": "fear",
    "5": "joy",
    "6": "sadness",
    "7": "surprise",
    "8": None,  # trust
}
NOT_A_CODE = {"br": "pt"}
"""Brazilian Portuguese has the code of a region in its file's name."""
UNREAD = frozenset({"cn", "tw", "zh", "ja", "th", "he"})
"""Scripts that the compact bundle's vocabulary does not hold."""


def load(folder: Path, limit: int = 1000) -> Iterator[Utterance]:
    """Annotated and projected lines, at most `limit` of each projected language, and of each language's neutral ones.

    Raises:
        CorpusMissing: it is not at `folder`.
    """
    existing(folder / "en-annotated.tsv", "XED", SOURCE)
    for language in ("en", "fi"):
        yield from _labelled(folder / f"{language}-annotated.tsv", language, None)
        yield from _neutral(folder / f"neu_{language}.txt", language, limit)
    for path in sorted(folder.glob("*-projections*.tsv")):
        code = path.name.split("-")[0]
        if code not in UNREAD | {"en", "fi"}:
            yield from _labelled(path, NOT_A_CODE.get(code, code), limit)


def _labelled(path: Path, language: str, limit: int | None) -> Iterator[Utterance]:
    count = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        text, _, numbers = line.rpartition("\t")
        categories = [LABELS[number.strip()] for number in numbers.split(",") if number.strip() in LABELS]
        named = [category for category in categories if category is not None]
        if text.strip() and named:
            yield _utterance(text, language, named)
            count += 1
        if count == limit:
            return


def _neutral(path: Path, language: str, limit: int) -> Iterator[Utterance]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines()[:limit]:
            if text := line.split("\t")[1].strip():
                yield _utterance(text, language, ["neutral"])


def _utterance(text: str, language: str, categories: list[str]) -> Utterance:
    # There are no published splits: a tenth of the texts, chosen by their digest, validates.
    digest = sha256(text.strip().encode()).hexdigest()
    return Utterance(
        id=digest,
        corpus="xed",
        language=language,
        split=Split.validation if int(digest, 16) % 10 == 0 else Split.train,
        target=target(categories),
        valence=valence(categories),
        group=digest,
        text=text.strip(),
    )
