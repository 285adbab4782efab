"""Batches of cached features: spoken utterances with their own words, other words or none, and texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from shared.modeling.encoders import Tokens
from shared.modeling.fusion import FusionConfig
from training.data.corpus import Utterance
from training.data.features import FeatureFile


@dataclass(frozen=True)
class Example:
    """Features of one utterance, either of which may be None.

    Attributes:
        text: shape [tokens, text width].
        voice: shape [tokens, layers, voice width].
    """

    utterance: Utterance
    text: Tensor | None
    voice: Tensor | None


@dataclass(frozen=True)
class Batch:
    """A batch for the fusion.

    Attributes:
        target: shape [batch, categories].
        valence: shape [batch]; NaN where nothing is known.
    """

    text: Tokens
    voice: Tokens
    target: Tensor
    valence: Tensor
    utterances: tuple[Utterance, ...]

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The same batch on another device, for Lightning."""
        text, voice = (Tokens(tokens.features.to(device), tokens.mask.to(device)) for tokens in (self.text, self.voice))
        return Batch(text, voice, self.target.to(device), self.valence.to(device), self.utterances)

    def mixed(self, alpha: float) -> "Batch":
        """Every voice overlaid with another's, more softly, and the targets likewise: mixup (Zhang et al. 2018).

        Args:
            alpha: of the Beta distribution that the share is drawn from; 0 mixes nothing.
        """
        if alpha == 0 or not self.voice.mask.any():
            return self
        share = torch.distributions.Beta(alpha, alpha).sample().item()
        share = max(share, 1 - share)  # the words remain those of the louder
        other = torch.randperm(len(self.utterances))
        overlap = (self.voice.mask & self.voice.mask[other])[..., None, None]
        sound = self.voice.features
        sound = torch.where(overlap, share * sound + (1 - share) * sound[other], sound)
        target, valence = (share * value + (1 - share) * value[other] for value in (self.target, self.valence))
        return Batch(self.text, Tokens(sound, self.voice.mask), target, valence, self.utterances)


class Features:
    """The cached features of some corpora."""

    def __init__(self, cache: Path, corpora: Sequence[str], augmentations: Sequence[str]) -> None:
        self._text = {name: FeatureFile(cache / name / "text") for name in corpora if _has(cache / name / "text")}
        self._voice = {
            (name, augmentation): FeatureFile(cache / name / augmentation)
            for name in corpora
            for augmentation in augmentations
            if _has(cache / name / augmentation)
        }

    def text(self, utterance: Utterance) -> Tensor | None:
        if utterance.text is None:
            return None
        return _tensor(self._text[utterance.corpus][utterance.text])

    def voice(self, utterance: Utterance, augmentation: str = "original") -> Tensor | None:
        if utterance.audio is None:
            return None
        return _tensor(self._voice[utterance.corpus, augmentation][utterance.id])


class TrainingBatches(IterableDataset[tuple[Batch, ...]]):
    """An endless supply of pairs of batches: `voices` spoken utterances, and `texts` texts.

    They are apart, as texts in one batch with voices would cost as much as voices. Either is left out where the corpora
    have none.

    The acted corpora's words say nothing of their emotion, so a model that saw only them would learn to overlook words
    wherever there is a voice. Hence a spoken utterance comes with its own words, or with those of a text of the same
    emotion, or with none.
    """

    def __init__(
        self,
        features: Features,
        config: FusionConfig,
        spoken: Sequence[Utterance],
        written: Sequence[Utterance],
        *,
        voices: int,
        texts: int,
        corpus_weights: dict[str, float],
        augmentations: Sequence[str],
        gaps: float,
        own_words: float,
        matching_words: float,
        seed: int,
    ) -> None:
        self._features = features
        self._config = config
        self._spoken = list(spoken)
        self._written = list(written)
        self._voices, self._texts = voices, texts
        self._augmentations = list(augmentations)
        self._gaps = gaps
        self._own_words, self._matching_words = own_words, matching_words
        self._rng = np.random.default_rng(seed)
        self._spoken_odds = _odds(self._spoken, corpus_weights)
        self._written_odds = _odds(self._written, corpus_weights)
        self._by_label: dict[int, list[Utterance]] = {}
        for utterance in self._written:
            if max(utterance.target) == 1:
                self._by_label.setdefault(utterance.label, []).append(utterance)

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        # Lightning asks anew every epoch, which must go on with the draws and not repeat them.
        rng = self._rng
        while True:
            pair: list[list[Example]] = []
            if self._spoken:
                drawn = rng.choice(len(self._spoken), self._voices, p=self._spoken_odds)
                pair.append([self._with_voice(self._spoken[i], rng) for i in drawn])
            if self._written:
                drawn = rng.choice(len(self._written), self._texts, p=self._written_odds)
                pair.append([Example(self._written[i], self._features.text(self._written[i]), None) for i in drawn])
            yield tuple(collate(examples, self._config) for examples in pair)

    def _with_voice(self, utterance: Utterance, rng: np.random.Generator) -> Example:
        # The recording as it is as often as all other ways together.
        augmented = rng.random() < 0.5 and bool(self._augmentations)
        name = self._augmentations[rng.integers(len(self._augmentations))] if augmented else "original"
        voice = self._features.voice(utterance, name)
        assert voice is not None
        return Example(utterance, self._words(utterance, rng), with_gaps(voice, self._gaps, rng))

    def _words(self, utterance: Utterance, rng: np.random.Generator) -> Tensor | None:
        chance = rng.random()
        if chance < self._own_words:
            return self._features.text(utterance)
        matching = self._by_label.get(utterance.label)
        if chance < self._own_words + self._matching_words and matching:
            return self._features.text(matching[rng.integers(len(matching))])
        return None


class EvaluationSet(Dataset[Example]):
    """Utterances one by one, with the modalities asked for."""

    def __init__(self, features: Features, utterances: Sequence[Utterance], *, text: bool, voice: bool) -> None:
        self._features = features
        self._utterances = [u for u in utterances if (u.text or not text) and (u.audio or not voice)]
        self._text, self._voice = text, voice

    def __len__(self) -> int:
        return len(self._utterances)

    def __getitem__(self, index: int) -> Example:
        utterance = self._utterances[index]
        return Example(
            utterance,
            self._features.text(utterance) if self._text else None,
            self._features.voice(utterance) if self._voice else None,
        )


def with_gaps(tokens: Tensor, share: float, rng: np.random.Generator, count: int = 2) -> Tensor:
    """Leave out `count` spans, each of at most `share` of the tokens, as SpecAugment does (Park et al. 2019)."""
    kept = np.ones(len(tokens), dtype=bool)
    for _ in range(count):
        length = int(rng.random() * share * len(tokens))
        start = rng.integers(len(tokens) - length + 1)
        kept[start : start + length] = False
    return tokens[torch.from_numpy(kept)]


def collate(examples: Sequence[Example], config: FusionConfig) -> Batch:
    """Pad a batch. A modality that no example has is one masked token each."""
    return Batch(
        text=_tokens([example.text for example in examples], (config.text_width,)),
        voice=_tokens([example.voice for example in examples], (config.voice_layers, config.voice_width)),
        target=torch.tensor([example.utterance.target for example in examples]),
        valence=torch.tensor([float("nan") if (v := example.utterance.valence) is None else v for example in examples]),
        utterances=tuple(example.utterance for example in examples),
    )


def _tokens(sequences: Sequence[Tensor | None], shape: tuple[int, ...]) -> Tokens:
    empty = torch.zeros(0, *shape)
    padded = Tokens.padded([empty if sequence is None else sequence for sequence in sequences])
    if padded.mask.shape[1] > 0:
        return padded
    return Tokens(torch.zeros(len(sequences), 1, *shape), torch.zeros(len(sequences), 1, dtype=torch.bool))


def _odds(utterances: Sequence[Utterance], weights: dict[str, float]) -> np.ndarray:
    """A corpus is drawn by its weight, whatever its size, and its utterances evenly."""
    sizes: dict[str, int] = {}
    for utterance in utterances:
        sizes[utterance.corpus] = sizes.get(utterance.corpus, 0) + 1
    if not utterances:
        return np.zeros(0)
    odds = np.array([weights.get(u.corpus, 1.0) / sizes[u.corpus] for u in utterances])
    return odds / odds.sum()


def _has(folder: Path) -> bool:
    return FeatureFile.exists(folder)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))
