"""The recipe `cache_features`: runs the frozen encoders over every utterance once and stores the features."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from rich.progress import track

from shared.audio.decoder import decode
from shared.modeling.loading import load_encoders
from shared.modeling.speech_encoders import SpeechEncoder
from shared.modeling.text_encoders import TextEncoder
from training.args import check_context_turns
from training.data.augmentations import AUGMENTATIONS, random_generator
from training.data.feature_cache import FeatureArray, FeatureFile
from training.data.input_sources import preceding_texts
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
    """Write the text features of every corpus, and the audio features of every corpus and augmentation.

    Features that exist already are not computed again.

    Args:
        encoders: A folder written by `build_encoders`, or by `train` inside a run's folder.
        data: The folder with the corpora.
        cache: The folder to write.
        corpora: Which corpora.
        augmentations: Which augmentations of the audio; `original` is the audio as recorded.
        batch_size: Texts that are encoded together.

    Raises:
        ValueError: the text encoder reads more preceding turns than serving gives it.
    """
    text_encoder, speech_encoder = load_encoders(encoders)
    check_context_turns(text_encoder.config.context_turns)
    for corpus in corpora:
        utterances = load(data, [corpus])
        texts = [utterance for utterance in utterances if utterance.text]
        if texts and not FeatureFile.exists(cache / corpus / "text"):
            FeatureFile.write(cache / corpus / "text", _text_features(text_encoder, texts, batch_size))
        spoken = [utterance for utterance in utterances if utterance.audio]
        for name in augmentations if spoken else ():
            if not FeatureFile.exists(cache / corpus / name):
                progress = track(spoken, f"{corpus}, {name}")
                FeatureFile.write(cache / corpus / name, _audio_features(speech_encoder, progress, name))


@torch.inference_mode()
def _text_features(
    encoder: TextEncoder, utterances: Sequence[Utterance], batch_size: int
) -> Iterator[tuple[str, FeatureArray]]:
    context = preceding_texts(utterances, encoder.config.context_turns)
    # Batches of texts of similar length need little padding.
    ordered = sorted(utterances, key=lambda u: sum(map(len, (u.text or "", *context.get((u.corpus, u.id), ())))))
    starts = range(0, len(ordered), batch_size)
    for start in track(starts, f"{utterances[0].corpus}, text"):
        part = ordered[start : start + batch_size]
        tokens = encoder([u.text or "" for u in part], [context.get((u.corpus, u.id), ()) for u in part])
        for utterance, features, mask in zip(part, tokens.features, tokens.mask, strict=True):
            yield utterance.id, features[mask].half().numpy()


@torch.inference_mode()
def _audio_features(
    encoder: SpeechEncoder, utterances: Iterable[Utterance], name: str
) -> Iterator[tuple[str, FeatureArray]]:
    for utterance in utterances:
        assert utterance.audio is not None
        tokens = encoder([AUGMENTATIONS[name](decode(utterance.audio).samples, random_generator(name, utterance))])
        yield utterance.id, tokens.features[0].half().numpy()
