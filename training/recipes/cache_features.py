"""Run the frozen encoders over every corpus, once."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from rich.progress import track

from shared.audio.decoder import decode
from shared.modeling.loading import load_encoders
from training.data.augmentations import AUGMENTATIONS, draws
from training.data.batches import turns_before
from training.data.feature_cache import FeatureArray, FeatureFile
from training.data.registry import load
from training.data.utterance import Utterance


def cache_features(
    encoders: Path,
    data: Path,
    cache: Path,
    corpora: Sequence[str],
    augmentations: Sequence[str] = ("original", "speed", "noise", "telephone"),
    batch_size: int = 32,
) -> None:
    """Write the text features of every corpus, and the voice features of every corpus and augmentation.

    What is there already is not done again.

    Args:
        encoders: a folder written by `build_encoders`.
        data: holds the corpora.
        cache: where to write.
        corpora: which corpora.
        augmentations: which ones; `original` is none.
        batch_size: texts at once.
    """
    text_encoder, speech_encoder = load_encoders(encoders)
    for corpus in corpora:
        utterances = load(data, [corpus])
        texts = [utterance for utterance in utterances if utterance.text]
        if texts and not FeatureFile.exists(cache / corpus / "text"):
            FeatureFile.write(cache / corpus / "text", _text_features(text_encoder, texts, batch_size))
        spoken = [utterance for utterance in utterances if utterance.audio]
        for name in augmentations if spoken else ():
            if not FeatureFile.exists(cache / corpus / name):
                progress = track(spoken, f"{corpus}, {name}")
                FeatureFile.write(cache / corpus / name, _voice_features(speech_encoder, progress, name))


@torch.inference_mode()
def _text_features(
    encoder: TextEncoder, utterances: Sequence[Utterance], batch_size: int
) -> Iterator[tuple[str, FeatureArray]]:
    before = turns_before(utterances, encoder.config.context_turns)
    # Texts of like length side by side need little padding.
    ordered = sorted(utterances, key=lambda u: sum(map(len, (u.text or "", *before.get((u.corpus, u.id), ())))))
    starts = range(0, len(ordered), batch_size)
    for start in track(starts, f"{utterances[0].corpus}, text"):
        part = ordered[start : start + batch_size]
        tokens = encoder([u.text or "" for u in part], [before.get((u.corpus, u.id), ()) for u in part])
        for utterance, features, mask in zip(part, tokens.features, tokens.mask, strict=True):
            yield utterance.id, features[mask].half().numpy()


@torch.inference_mode()
def _voice_features(
    encoder: SpeechEncoder, utterances: Iterable[Utterance], name: str
) -> Iterator[tuple[str, FeatureArray]]:
    for utterance in utterances:
        assert utterance.audio is not None
        tokens = encoder([AUGMENTATIONS[name](decode(utterance.audio), draws(name, utterance))])
        yield utterance.id, tokens.features[0].half().numpy()
