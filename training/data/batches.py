"""Training batches: utterances with audio, which keep, swap or lose their text, and utterances of text alone."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset

from training.args import AugmentationArgs, BatchArgs
from training.data.examples import Example, TextWithContext
from training.data.input_sources import InputSource
from training.data.masking import drop_spans, mask_bands
from training.data.speaker_summaries import SpeakerSummaries
from training.data.utterance import Utterance

BatchType = TypeVar("BatchType")


class TrainingBatches(IterableDataset[tuple[BatchType, ...]], Generic[BatchType]):
    """Endless pairs of batches: one of utterances with audio, and one of utterances with text alone.

    The two are apart because a text in a batch with audio would cost as much as a clip. A corpus selection without one
    of the two gives single batches.

    The sentences of acted corpora say nothing about their emotion, so a model that saw only those would learn to ignore
    the text of every utterance with audio. Hence an utterance with audio comes with its own text, with a text of the
    same emotion from another corpus, with a neutral text, or with none. All baselines of a batch are of the same number
    of earlier turns, from none to the most, so that one model learns to serve the first turn of a conversation and the
    twentieth. A speaker who has one emotion only trains without a baseline.

    Args:
        source: gives text and audio.
        speakers: the summaries for the baselines.
        collate: makes a batch of examples.
        spoken: utterances with audio.
        written: utterances with text alone.
        batches: what a batch is made of.
        augmentation: how audio is varied.
        neutral: the label of the neutral category; None if there is none.
        seed: of everything that is drawn.
    """

    def __init__(
        self,
        source: InputSource,
        speakers: SpeakerSummaries,
        collate: Callable[[Sequence[Example]], BatchType],
        spoken: Sequence[Utterance],
        written: Sequence[Utterance],
        *,
        batches: BatchArgs,
        augmentation: AugmentationArgs,
        neutral: int | None,
        seed: int,
    ) -> None:
        self._source = source
        self._speakers = speakers
        self._collate = collate
        self._spoken = list(spoken)
        self._written = list(written)
        self._batches = batches
        self._augmentation = augmentation
        self._neutral = neutral
        swapped = batches.own_text, batches.matching_text, batches.neutral_text
        self._text_odds = [*swapped, 1 - batches.own_text - batches.matching_text - batches.neutral_text]
        self._rng = np.random.default_rng(seed)
        self._draw_spoken = _draw_indexes(self._spoken, batches.corpus_weights, self._rng)
        self._draw_written = _draw_indexes(self._written, batches.corpus_weights, self._rng)
        self._by_label: dict[int, list[Utterance]] = {}
        for utterance in self._written:
            if utterance.target is not None and sum(share > 0 for share in utterance.target) == 1:
                self._by_label.setdefault(utterance.label, []).append(utterance)

    @property
    def steps_per_epoch(self) -> int:
        """How many pairs it takes to draw as many utterances with audio, or else texts, as there are."""
        if self._spoken:
            return max(1, -(-len(self._spoken) // self._batches.audio))
        return max(1, -(-len(self._written) // self._batches.text))

    def __iter__(self) -> Iterator[tuple[BatchType, ...]]:
        # Lightning starts a new iterator every epoch, which must continue the draws and not repeat them.
        while True:
            pair: list[list[Example]] = []
            if self._spoken:
                earlier = int(self._rng.choice(self._batches.earlier_turns))
                drawn = islice(self._draw_spoken, self._batches.audio)
                pair.append([self._with_audio(self._spoken[i], earlier) for i in drawn])
            if self._written:
                texts = [self._written[i] for i in islice(self._draw_written, self._batches.text)]
                pair.append([Example(utterance, self._source.text(utterance), None) for utterance in texts])
            yield tuple(self._collate(examples) for examples in pair)

    def _with_audio(self, utterance: Utterance, earlier: int) -> Example:
        kinds = self._augmentation.kinds
        # Half of the clips stay as recorded, however many augmentations there are.
        augmented = self._rng.random() < 0.5 and bool(kinds)
        kind = kinds[self._rng.integers(len(kinds))] if augmented else "original"
        audio = self._source.audio(utterance, kind)
        assert audio is not None
        if isinstance(audio, Tensor):
            audio = self._masked(audio)
        earlier = earlier if earlier and self._speakers.has_several_emotions(utterance) else 0
        summaries = self._speakers.earlier(utterance, earlier, self._rng, kind)
        return Example(utterance, self._text(utterance), audio, summaries, kind)

    def _masked(self, audio: Tensor) -> Tensor:
        audio = drop_spans(audio, self._augmentation.dropped_spans, self._rng)
        bands = self._augmentation.masked_bands
        # A band at the clip's own mean shows nothing of how the band changes over time.
        return mask_bands(audio, bands, self._rng, fill=audio.mean(dim=0)) if bands else audio

    def _text(self, utterance: Utterance) -> Tensor | TextWithContext | None:
        match self._rng.choice(["own", "matching", "neutral", "none"], p=self._text_odds):
            case "own":
                return self._source.text(utterance)
            case "matching":
                texts = self._by_label.get(utterance.label, [])
            case "neutral":
                texts = [] if self._neutral is None else self._by_label.get(self._neutral, [])
            case _:
                texts = []
        return self._source.text(texts[self._rng.integers(len(texts))]) if texts else None


def _draw_indexes(
    utterances: Sequence[Utterance], weights: Mapping[str, float] | None, rng: np.random.Generator
) -> Iterator[int]:
    """Yields indexes of utterances forever: without weights, all in random order, and again in a new order.

    With weights, a corpus is drawn by its weight, whatever its size, and its utterances evenly.
    """
    if weights is not None and utterances:
        sizes = Counter(u.corpus for u in utterances)
        odds = np.array([weights.get(u.corpus, 1.0) / sizes[u.corpus] for u in utterances])
        while True:
            yield from rng.choice(len(utterances), 1024, p=odds / odds.sum()).tolist()
    while utterances:
        yield from rng.permutation(len(utterances)).tolist()
