"""Views of a corpus: the combinations of modalities in which its utterances are validated and measured."""

from collections.abc import Iterable
from typing import NamedTuple

from training.data.utterance import Utterance


class View(NamedTuple):
    """A corpus read with its text, its audio, or both."""

    corpus: str
    text: bool
    audio: bool


def views(utterances: Iterable[Utterance]) -> dict[str, View]:
    """Returns the views of every corpus by name, such as `ravdess audio`, `ravdess both` and `meld text`.

    A corpus with recordings is read by audio alone, and, if it also has text, by both; a corpus without recordings is
    read by text.
    """
    modalities: dict[str, tuple[bool, bool]] = {}
    for utterance in utterances:
        text, audio = modalities.get(utterance.corpus, (False, False))
        modalities[utterance.corpus] = text or utterance.text is not None, audio or utterance.audio is not None
    found: dict[str, View] = {}
    for corpus, (text, audio) in modalities.items():
        if audio:
            found[f"{corpus} audio"] = View(corpus, text=False, audio=True)
        if text:
            found[f"{corpus} {'both' if audio else 'text'}"] = View(corpus, text=True, audio=audio)
    return found
