"""Audio summaries by speaker, from which the baseline of an utterance's speaker is derived."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from shared.modeling.baseline import AudioSummary, summarize_audio
from shared.modeling.tokens import Tokens
from training.data.input_sources import CachedFeatures
from training.data.utterance import Utterance

Summarize = Callable[[Utterance, str], AudioSummary | None]
"""Returns the audio summary of an utterance with an augmentation, or None if there is no such audio."""


class SpeakerSummaries:
    """The audio summaries of some utterances, by speaker.

    Args:
        utterances: all utterances with audio of one split.
        summarize: computes a summary.
        augmentations: which augmentations to summarize besides the original audio.
    """

    def __init__(
        self, utterances: Sequence[Utterance], summarize: Summarize, augmentations: Sequence[str] = ()
    ) -> None:
        self._utterances: dict[tuple[str, str], list[Utterance]] = {}
        self._summaries: dict[tuple[str, str, str], AudioSummary] = {}
        for utterance in utterances:
            self._utterances.setdefault((utterance.corpus, utterance.group), []).append(utterance)
            for augmentation in ("original", *augmentations):
                if (summary := summarize(utterance, augmentation)) is not None:
                    self.update(utterance, augmentation, summary)

    def update(self, utterance: Utterance, augmentation: str, summary: AudioSummary) -> None:
        """Replace a summary, after the encoder that computed it has changed."""
        self._summaries[utterance.corpus, utterance.id, augmentation] = summary

    def earlier(
        self,
        utterance: Utterance,
        count: int,
        rng: np.random.Generator,
        augmentation: str = "original",
        emotion: int | None = None,
    ) -> list[AudioSummary]:
        """Returns the summaries of up to `count` other utterances of the same speaker, drawn at random.

        They have the same augmentation, as turns of one conversation are recorded in the same way; an utterance without
        a summary of the augmentation gives its original one.

        Args:
            emotion: a label; utterances that have it come before all others. None prefers none.
        """
        others = [u for u in self._speaker(utterance) if u.id != utterance.id] if count else []
        drawn: list[Utterance] = [others[i] for i in rng.permutation(len(others))]
        if emotion is not None:
            drawn.sort(key=lambda other: other.label != emotion)
        return [self._summary(other, augmentation) for other in drawn[:count]]

    def has_several_emotions(self, utterance: Utterance) -> bool:
        """Whether the utterance's speaker has more than one label; a baseline would hide the only one."""
        return len({u.label for u in self._speaker(utterance)}) > 1

    def by_speaker(self) -> list[tuple[Tensor, list[int]]]:
        """Returns every speaker's summaries, of shape [utterances, 2, layers, width], and labels."""
        return [
            (
                torch.as_tensor(np.stack([self._summary(u, "original") for u in utterances]).astype(np.float32)),
                [u.label for u in utterances],
            )
            for utterances in self._utterances.values()
        ]

    def _speaker(self, utterance: Utterance) -> list[Utterance]:
        return self._utterances[utterance.corpus, utterance.group]

    def _summary(self, utterance: Utterance, augmentation: str) -> AudioSummary:
        key = utterance.corpus, utterance.id
        return self._summaries.get((*key, augmentation), self._summaries[*key, "original"])


def summarize_cached(features: CachedFeatures) -> Summarize:
    """Returns a function that computes summaries of cached features."""

    def summarize(utterance: Utterance, augmentation: str) -> AudioSummary | None:
        audio = features.audio(utterance, augmentation)
        return None if audio is None else summarize_audio(Tokens.padded([audio]))[0].half().numpy()

    return summarize
