"""Batches of utterances: spoken ones with their own words, other words or none, and texts."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from shared.audio.decoder import Samples, decode
from shared.modeling.baseline import AudioSummary, SpeakerBaseline, summarize_audio
from shared.modeling.fusion import FusionConfig
from shared.modeling.tokens import Tokens
from training.data.augment import AUGMENTATIONS, OTHER_VOICES, draws, with_bands_masked
from training.data.corpus import Utterance
from training.data.features import FeatureFile


@dataclass(frozen=True)
class Words:
    """A text, and the turns before it, the oldest first."""

    text: str
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Example:
    """An utterance with its words and its voice, either of which may be None.

    Attributes:
        text: features of shape [tokens, text width], or the words themselves.
        voice: features of shape [tokens, layers, voice width], or the sound itself.
        earlier: voice summaries of the speaker's earlier turns.
        augmentation: the way in which the voice is given.
    """

    utterance: Utterance
    text: Tensor | Words | None
    voice: Tensor | Samples | None
    earlier: Sequence[AudioSummary] = ()
    augmentation: str = "original"


@dataclass(frozen=True)
class Unencoded:
    """A batch of words and sound, for encoders that learn."""

    examples: tuple[Example, ...]

    def to(self, device: torch.device, non_blocking: bool = False) -> "Unencoded":
        """The same, as Lightning asks for it; the encoders put on their device what they make of it."""
        return self


@dataclass(frozen=True)
class Batch:
    """A batch for the fusion.

    Attributes:
        target: shape [batch, categories].
        valence: shape [batch]; NaN where nothing is known.
    """

    text: Tokens
    voice: Tokens
    baseline: SpeakerBaseline
    target: Tensor
    valence: Tensor
    utterances: tuple[Utterance, ...]

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The same batch on another device, for Lightning."""
        text, voice = (Tokens(tokens.features.to(device), tokens.mask.to(device)) for tokens in (self.text, self.voice))
        known = self.baseline
        baseline = SpeakerBaseline(known.count.to(device), known.mean.to(device), known.variance.to(device))
        return Batch(text, voice, baseline, self.target.to(device), self.valence.to(device), self.utterances)

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
        known = self.baseline
        target, valence, mean = (share * x + (1 - share) * x[other] for x in (self.target, self.valence, known.mean))
        baseline = SpeakerBaseline(torch.minimum(known.count, known.count[other]), mean, known.variance)
        return Batch(self.text, Tokens(sound, self.voice.mask), baseline, target, valence, self.utterances)


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
        return _tensor(self._text[utterance.corpus][utterance.id])

    def voice(self, utterance: Utterance, augmentation: str = "original") -> Tensor | None:
        if utterance.audio is None:
            return None
        if (utterance.corpus, augmentation) not in self._voice:
            raise ValueError(f"the cache has no {augmentation!r} of {utterance.corpus}: make it by `cache_features`")
        return _tensor(self._voice[utterance.corpus, augmentation][utterance.id])


class Recordings:
    """The words and the sound of some utterances, as encoders that learn read them."""

    def __init__(self, utterances: Sequence[Utterance], context_turns: int, seed: int) -> None:
        self._before = turns_before(utterances, context_turns)
        self._rng = np.random.default_rng(seed)

    def text(self, utterance: Utterance) -> Words | None:
        if utterance.text is None:
            return None
        return Words(utterance.text, self._before.get((utterance.corpus, utterance.id), ()))

    def voice(self, utterance: Utterance, augmentation: str = "original") -> Samples | None:
        if utterance.audio is None:
            return None
        rng = draws(augmentation, utterance) if augmentation in OTHER_VOICES else self._rng
        return AUGMENTATIONS[augmentation](decode(utterance.audio), rng)


Source = Features | Recordings


def turns_before(utterances: Sequence[Utterance], count: int) -> dict[tuple[str, str], tuple[str, ...]]:
    """By corpus and id, the texts of up to `count` turns before an utterance in its dialogue, the oldest first."""
    dialogues: dict[tuple[str, str], list[Utterance]] = {}
    for utterance in utterances if count else ():
        if utterance.dialogue is not None and utterance.text is not None:
            dialogues.setdefault((utterance.corpus, utterance.dialogue), []).append(utterance)
    before: dict[tuple[str, str], tuple[str, ...]] = {}
    for turns in dialogues.values():
        turns.sort(key=lambda turn: turn.position or 0)
        for i, turn in enumerate(turns):
            before[turn.corpus, turn.id] = tuple(t.text or "" for t in turns[max(0, i - count) : i])
    return before


class Speakers:
    """The voices of some utterances, summed up, by who speaks.

    Args:
        utterances: all of one split.
        summarize: gives the summary of an utterance's voice, augmented in a way; None where there is no such voice.
        augmentations: the ways beside the original.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        summarize: Callable[[Utterance, str], AudioSummary | None],
        augmentations: Sequence[str] = (),
    ) -> None:
        self._of: dict[tuple[str, str], list[Utterance]] = {}
        self._summaries: dict[tuple[str, str, str], AudioSummary] = {}
        for utterance in utterances:
            self._of.setdefault((utterance.corpus, utterance.group), []).append(utterance)
            for way in ("original", *augmentations):
                if (summary := summarize(utterance, way)) is not None:
                    self.renew(utterance, way, summary)

    def renew(self, utterance: Utterance, augmentation: str, summary: AudioSummary) -> None:
        """Keep what an encoder that learns makes of a voice by now."""
        self._summaries[utterance.corpus, utterance.id, augmentation] = summary

    def earlier(
        self,
        utterance: Utterance,
        count: int,
        rng: np.random.Generator,
        augmentation: str = "original",
        mood: int | None = None,
    ) -> list[AudioSummary]:
        """Summaries of `count` other utterances of the same speaker, as far as there are so many, drawn by `rng`.

        They are recorded in the same way, as turns of one conversation are, as far as that is known of them. Those with
        the label `mood`, where one is given, come before all others.
        """
        others = [u for u in self._of[utterance.corpus, utterance.group] if u.id != utterance.id] if count else []
        drawn = [others[i] for i in rng.permutation(len(others))]
        if mood is not None:
            drawn.sort(key=lambda other: other.label != mood)
        return [self._summary(other, augmentation) for other in drawn[:count]]

    def varies(self, utterance: Utterance) -> bool:
        """Whether more than one emotion is heard of the speaker: else a baseline would hide the only one."""
        return len({u.label for u in self._of[utterance.corpus, utterance.group]}) > 1

    def voices(self) -> list[tuple[Tensor, list[int]]]:
        """Every speaker's summaries, shape [utterances, 2, layers, width], and their labels."""
        return [
            (
                torch.from_numpy(np.stack([self._summary(u, "original") for u in said]).astype(np.float32)),
                [u.label for u in said],
            )
            for said in self._of.values()
        ]

    def _summary(self, utterance: Utterance, augmentation: str) -> AudioSummary:
        key = utterance.corpus, utterance.id
        return self._summaries.get((*key, augmentation), self._summaries[*key, "original"])


def cached_summary(features: Features) -> Callable[[Utterance, str], AudioSummary | None]:
    """What `Speakers` asks for, of cached features."""

    def summarize(utterance: Utterance, augmentation: str) -> AudioSummary | None:
        voice = features.voice(utterance, augmentation)
        return None if voice is None else summarize_audio(Tokens.padded([voice]))[0].half().numpy()

    return summarize


Together = TypeVar("Together")


class TrainingBatches(IterableDataset[tuple[Together, ...]], Generic[Together]):
    """An endless supply of pairs of batches: `voices` spoken utterances, and `texts` texts.

    They are apart, as texts in one batch with voices would cost as much as voices. Either is left out where the corpora
    have none.

    The acted corpora's words say nothing of their emotion, so a model that saw only them would learn to overlook words
    wherever there is a voice. Hence a spoken utterance comes with its own words, with those of a text of the same
    emotion, with neutral ones, or with none. All voices of a batch are read against baselines of equally many turns,
    from none to the most, so that one model learns to serve a conversation's first turn and its twentieth. Whoever is
    heard in one emotion only is read without.
    """

    def __init__(
        self,
        source: Source,
        speakers: Speakers,
        together: Callable[[Sequence[Example]], Together],
        spoken: Sequence[Utterance],
        written: Sequence[Utterance],
        *,
        voices: int,
        texts: int,
        corpus_weights: dict[str, float] | None,
        augmentations: Sequence[str],
        gaps: float,
        bands: float,
        own_words: float,
        matching_words: float,
        neutral_words: float,
        neutral: int | None,
        earlier_turns: Sequence[int],
        seed: int,
    ) -> None:
        self._source = source
        self._speakers = speakers
        self._together = together
        self._earlier_turns = list(earlier_turns)
        self._spoken = list(spoken)
        self._written = list(written)
        self._voices, self._texts = voices, texts
        self._augmentations = list(augmentations)
        self._gaps = gaps
        self._bands = bands
        self._neutral = neutral
        self._words_odds = [own_words, matching_words, neutral_words, 1 - own_words - matching_words - neutral_words]
        self._rng = np.random.default_rng(seed)
        self._draw_spoken = _draws(self._spoken, corpus_weights, self._rng)
        self._draw_written = _draws(self._written, corpus_weights, self._rng)
        self._by_label: dict[int, list[Utterance]] = {}
        for utterance in self._written:
            if utterance.target is not None and sum(share > 0 for share in utterance.target) == 1:
                self._by_label.setdefault(utterance.label, []).append(utterance)

    @property
    def steps_per_epoch(self) -> int:
        """How many pairs it takes to draw as many spoken utterances, or else texts, as there are."""
        return max(1, -(-len(self._spoken) // self._voices) if self._spoken else -(-len(self._written) // self._texts))

    def __iter__(self) -> Iterator[tuple[Together, ...]]:
        # Lightning asks anew every epoch, which must go on with the draws and not repeat them.
        while True:
            pair: list[list[Example]] = []
            if self._spoken:
                earlier = int(self._rng.choice(self._earlier_turns))
                pair.append(
                    [self._with_voice(self._spoken[i], earlier) for i in islice(self._draw_spoken, self._voices)]
                )
            if self._written:
                drawn = [self._written[i] for i in islice(self._draw_written, self._texts)]
                pair.append([Example(utterance, self._source.text(utterance), None) for utterance in drawn])
            yield tuple(self._together(examples) for examples in pair)

    def _with_voice(self, utterance: Utterance, earlier: int) -> Example:
        # The recording as it is as often as all other ways together.
        augmented = self._rng.random() < 0.5 and bool(self._augmentations)
        way = self._augmentations[self._rng.integers(len(self._augmentations))] if augmented else "original"
        voice = self._source.voice(utterance, way)
        assert voice is not None
        if isinstance(voice, Tensor):
            voice = self._masked(voice)
        earlier = earlier if earlier and self._speakers.varies(utterance) else 0
        known = self._speakers.earlier(utterance, earlier, self._rng, way)
        return Example(utterance, self._words(utterance), voice, known, way)

    def _masked(self, voice: Tensor) -> Tensor:
        """Without some spans, and with some bands at the clip's own mean, which says nothing of how it moves."""
        voice = with_gaps(voice, self._gaps, self._rng)
        return with_bands_masked(voice, self._bands, self._rng, fill=voice.mean(dim=0)) if self._bands else voice

    def _words(self, utterance: Utterance) -> Tensor | Words | None:
        match self._rng.choice(["own", "matching", "neutral", "none"], p=self._words_odds):
            case "own":
                return self._source.text(utterance)
            case "matching":
                texts = self._by_label.get(utterance.label, [])
            case "neutral":
                texts = [] if self._neutral is None else self._by_label.get(self._neutral, [])
            case _:
                texts = []
        return self._source.text(texts[self._rng.integers(len(texts))]) if texts else None


class EvaluationSet(Dataset[Example]):
    """Utterances one by one, with the modalities asked for, and with a baseline of other utterances of the speaker.

    With `one_mood`, the baseline is of utterances in the emotion of the one to be read, as far as there are so many.
    """

    def __init__(
        self,
        source: Source,
        utterances: Sequence[Utterance],
        *,
        text: bool,
        voice: bool,
        speakers: Speakers | None = None,
        earlier_turns: int = 0,
        one_mood: bool = False,
    ) -> None:
        self._source = source
        self.utterances = [u for u in utterances if (u.text or not text) and (u.audio or not voice)]
        self._text, self._voice = text, voice
        self._speakers, self._earlier_turns, self._one_mood = speakers, earlier_turns, one_mood

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Example:
        utterance = self.utterances[index]
        return Example(
            utterance,
            self._source.text(utterance) if self._text else None,
            self._source.voice(utterance) if self._voice else None,
            self._earlier(utterance),
        )

    def _earlier(self, utterance: Utterance) -> Sequence[AudioSummary]:
        if self._speakers is None or not self._voice:
            return ()
        rng = np.random.default_rng(crc32(utterance.id.encode()))  # drawn anew the same way every time
        mood = utterance.label if self._one_mood else None
        return self._speakers.earlier(utterance, self._earlier_turns, rng, mood=mood)


def with_gaps(tokens: Tensor, share: float, rng: np.random.Generator, count: int = 2) -> Tensor:
    """Leave out `count` spans, each of at most `share` of the tokens, as SpecAugment does (Park et al. 2019)."""
    kept = np.ones(len(tokens), dtype=bool)
    for _ in range(count):
        length = int(rng.random() * share * len(tokens))
        start = rng.integers(len(tokens) - length + 1)
        kept[start : start + length] = False
    return tokens[torch.from_numpy(kept)]


def unencoded(examples: Sequence[Example]) -> Unencoded:
    """A batch for encoders that learn."""
    return Unencoded(tuple(examples))


def collate(examples: Sequence[Example], config: FusionConfig) -> Batch:
    """Pad a batch of features. A modality that no example has is one masked token each."""
    return Batch(
        text=_tokens([_features(example.text) for example in examples], (config.text_width,)),
        voice=_tokens([_features(example.voice) for example in examples], (config.audio_layers, config.audio_width)),
        baseline=SpeakerBaseline.from_summaries([example.earlier for example in examples], config.summary_shape),
        target=torch.tensor([example.utterance.target for example in examples]),
        valence=torch.tensor([float("nan") if (v := example.utterance.valence) is None else v for example in examples]),
        utterances=tuple(example.utterance for example in examples),
    )


def _features(given: Tensor | Words | Samples | None) -> Tensor | None:
    if given is None or isinstance(given, Tensor):
        return given
    raise TypeError(f"a {type(given).__name__} stands where features should: it must be encoded first")


def _tokens(sequences: Sequence[Tensor | None], shape: tuple[int, ...]) -> Tokens:
    given = [sequence for sequence in sequences if sequence is not None]
    empty = (given[0] if given else torch.empty(0)).new_zeros(0, *shape)
    padded = Tokens.padded([empty if sequence is None else sequence for sequence in sequences])
    if padded.mask.shape[1] > 0:
        return padded
    return Tokens(torch.zeros(len(sequences), 1, *shape), torch.zeros(len(sequences), 1, dtype=torch.bool))


def _draws(
    utterances: Sequence[Utterance], weights: dict[str, float] | None, rng: np.random.Generator
) -> Iterator[int]:
    """Places of utterances, for ever: without weights all in turn, in a new order each time round.

    With weights a corpus is drawn by its own, whatever its size, and its utterances evenly.
    """
    if weights is not None and utterances:
        sizes = Counter(u.corpus for u in utterances)
        odds = np.array([weights.get(u.corpus, 1.0) / sizes[u.corpus] for u in utterances])
        while True:
            yield from rng.choice(len(utterances), 1024, p=odds / odds.sum()).tolist()
    while utterances:
        yield from rng.permutation(len(utterances)).tolist()


def _has(folder: Path) -> bool:
    return FeatureFile.exists(folder)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))
