"""The utterances of a view, one by one, for validation and evaluation."""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
from torch.utils.data import Dataset

from shared.modeling.baseline import AudioSummary
from training.data.examples import Example
from training.data.input_sources import InputSource
from training.data.speaker_summaries import SpeakerSummaries
from training.data.utterance import Utterance


class EvaluationSet(Dataset[Example]):
    """Utterances with the chosen modalities, each with a baseline of other utterances of its speaker.

    Args:
        source: gives the text and the audio.
        utterances: those without a chosen modality are left out.
        text: whether the examples have their text.
        audio: whether the examples have their audio.
        speakers: the summaries for the baselines; None gives no baselines.
        earlier_turns: how many other utterances of the speaker make up a baseline.
        same_emotion: prefer utterances with the label of the one that is predicted.
    """

    def __init__(
        self,
        source: InputSource,
        utterances: Sequence[Utterance],
        *,
        text: bool,
        audio: bool,
        speakers: SpeakerSummaries | None = None,
        earlier_turns: int = 0,
        same_emotion: bool = False,
    ) -> None:
        self._source = source
        self.utterances = [u for u in utterances if (u.text or not text) and (u.audio or not audio)]
        self._text, self._audio = text, audio
        self._speakers, self._earlier_turns, self._same_emotion = speakers, earlier_turns, same_emotion

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Example:
        utterance = self.utterances[index]
        return Example(
            utterance,
            self._source.text(utterance) if self._text else None,
            self._source.audio(utterance) if self._audio else None,
            self._earlier(utterance),
        )

    def _earlier(self, utterance: Utterance) -> Sequence[AudioSummary]:
        if self._speakers is None or not self._audio:
            return ()
        # Seeded by the utterance, so that every evaluation draws the same earlier turns.
        rng = np.random.default_rng(crc32(utterance.id.encode()))
        emotion = utterance.label if self._same_emotion else None
        return self._speakers.earlier(utterance, self._earlier_turns, rng, emotion=emotion)
