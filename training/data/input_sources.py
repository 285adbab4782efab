"""Where the text and the audio of an utterance come from: cached features, or the text and the recording themselves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.audio.decoder import Samples, decode
from training.data.augmentations import AUGMENTATIONS, OTHER_VOICES, random_generator
from training.data.examples import TextWithContext
from training.data.feature_cache import FeatureArray, FeatureFile
from training.data.utterance import Utterance


class CachedFeatures:
    """The cached features of some corpora.

    Args:
        cache: a folder written by `cache_features`.
        corpora: which corpora to open.
        augmentations: which augmentations of the audio to open.
    """

    def __init__(self, cache: Path, corpora: Sequence[str], augmentations: Sequence[str]) -> None:
        self._text = {
            name: FeatureFile(cache / name / "text") for name in corpora if FeatureFile.exists(cache / name / "text")
        }
        self._audio = {
            (name, augmentation): FeatureFile(cache / name / augmentation)
            for name in corpora
            for augmentation in augmentations
            if FeatureFile.exists(cache / name / augmentation)
        }

    def text(self, utterance: Utterance) -> Tensor | None:
        """Returns the text features, of shape [tokens, width], or None if there is no text."""
        if utterance.text is None:
            return None
        return _tensor(self._text[utterance.corpus][utterance.id])

    def audio(self, utterance: Utterance, augmentation: str = "original") -> Tensor | None:
        """Returns the audio features, of shape [tokens, layers, width], or None if there is no recording.

        Raises:
            ValueError: the cache does not have the augmentation.
        """
        if utterance.audio is None:
            return None
        if (utterance.corpus, augmentation) not in self._audio:
            raise ValueError(f"the cache has no {augmentation!r} of {utterance.corpus}: make it with `cache_features`")
        return _tensor(self._audio[utterance.corpus, augmentation][utterance.id])


class RawInputs:
    """The texts and the samples of some utterances, for encoders that train.

    Args:
        utterances: which utterances; among them are the preceding turns of each.
        context_turns: how many preceding turns a text gets.
        seed: of the augmentations.
    """

    def __init__(self, utterances: Sequence[Utterance], context_turns: int, seed: int) -> None:
        self._context = preceding_texts(utterances, context_turns)
        self._rng = np.random.default_rng(seed)

    def text(self, utterance: Utterance) -> TextWithContext | None:
        """Returns the text with its context, or None if there is no text."""
        if utterance.text is None:
            return None
        return TextWithContext(utterance.text, self._context.get((utterance.corpus, utterance.id), ()))

    def audio(self, utterance: Utterance, augmentation: str = "original") -> Samples | None:
        """Returns the augmented samples, or None if there is no recording."""
        if utterance.audio is None:
            return None
        rng = random_generator(augmentation, utterance) if augmentation in OTHER_VOICES else self._rng
        return AUGMENTATIONS[augmentation](decode(utterance.audio).samples, rng)


InputSource = CachedFeatures | RawInputs


def preceding_texts(utterances: Sequence[Utterance], count: int) -> dict[tuple[str, str], tuple[str, ...]]:
    """Returns, by corpus and id, the texts of up to `count` preceding turns of the same dialogue, oldest first."""
    dialogues: dict[tuple[str, str], list[Utterance]] = {}
    for utterance in utterances if count else ():
        if utterance.dialogue is not None and utterance.text is not None:
            dialogues.setdefault((utterance.corpus, utterance.dialogue), []).append(utterance)
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for turns in dialogues.values():
        turns.sort(key=lambda turn: turn.position or 0)
        for i, turn in enumerate(turns):
            found[turn.corpus, turn.id] = tuple(t.text or "" for t in turns[max(0, i - count) : i])
    return found


def _tensor(array: FeatureArray) -> Tensor:
    return torch.as_tensor(np.array(array, dtype=np.float32))
