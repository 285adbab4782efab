"""Cached features, training batches and evaluation sets."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.domain.emotion import EKMAN7
from tests.tiny_models import FUSION
from training.args import AugmentationArgs, BatchArgs
from training.data.batches import TrainingBatches
from training.data.evaluation_set import EvaluationSet
from training.data.examples import Batch, Example, collate
from training.data.feature_cache import FeatureFile
from training.data.input_sources import CachedFeatures
from training.data.masking import drop_spans
from training.data.speaker_summaries import SpeakerSummaries, summarize_cached
from training.data.utterance import Split, Utterance, ekman_target

FEATURE_OF = {"original": 1.0, "noise": 2.0, "speed": 3.0}
PLAIN = AugmentationArgs(kinds=("noise", "speed"), dropped_spans=0, masked_bands=0, mixup=0)


def spoken(corpus: str, number: int, category: str = "joy") -> Utterance:
    name = f"{corpus} {number}"
    return Utterance(
        name, corpus, "en", Split.train, ekman_target([category]), 1.0, name, category, text=name, audio=Path(name)
    )


def written(corpus: str, number: int, category: str = "joy") -> Utterance:
    name = f"{corpus} {number}"
    return Utterance(name, corpus, "en", Split.train, ekman_target([category]), None, name, category, text=name)


ACTED = [spoken("ravdess", i, category) for i, category in enumerate(EKMAN7.categories)]
URDU = [spoken("urdu_latif", i) for i in range(63)]
DIALOGUE = [written("meld", i, category) for i, category in enumerate(EKMAN7.categories)]
SUBTITLES = [written("xed", i, category) for i, category in enumerate(EKMAN7.categories * 9)]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> CachedFeatures:
    """Text features equal the number of the label, audio features that of the augmentation."""
    cache = tmp_path_factory.mktemp("cache")
    for corpus, utterances in {"ravdess": ACTED, "urdu_latif": URDU, "meld": DIALOGUE, "xed": SUBTITLES}.items():
        texts = [(u.id, np.full((3, 32), u.label, np.float16)) for u in utterances]
        FeatureFile.write(cache / corpus / "text", texts)
        for name, value in FEATURE_OF.items() if utterances[0].audio else ():
            FeatureFile.write(
                cache / corpus / name, [(u.id, np.full((2, 2, 16), value, np.float16)) for u in utterances]
            )
    return CachedFeatures(cache, ["ravdess", "urdu_latif", "meld", "xed"], list(FEATURE_OF))


def batches(
    features: CachedFeatures,
    spoken: list[Utterance],
    written: list[Utterance],
    *,
    seed: int = 0,
    augmentation: AugmentationArgs = PLAIN,
    **options: Any,  # noqa: ANN401 - those of BatchArgs
) -> TrainingBatches[Batch]:
    defaults = {"audio": 200, "text": 200, "corpus_weights": {}, "own_text": 0.3, "matching_text": 0.4}
    speakers = SpeakerSummaries(spoken, summarize_cached(features), augmentation.kinds)
    return TrainingBatches(
        features,
        speakers,
        partial(collate, config=FUSION),
        spoken,
        written,
        batches=BatchArgs.model_validate({**defaults, "earlier_turns": (0,), **options}),
        augmentation=augmentation,
        neutral=EKMAN7.index("neutral"),
        seed=seed,
    )


def share(batch: Batch, corpus: str) -> float:
    return sum(u.corpus == corpus for u in batch.utterances) / len(batch.utterances)


def test_cached_features_are_read_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    items = {f"id {i}": rng.standard_normal((i + 1, 2, 3)).astype(np.float16) for i in range(4)}
    assert not FeatureFile.exists(tmp_path / "audio")
    FeatureFile.write(tmp_path / "audio", items.items())
    assert FeatureFile.exists(tmp_path / "audio")
    file = FeatureFile(tmp_path / "audio")
    for id_, sequence in items.items():
        assert id_ in file
        np.testing.assert_array_equal(file[id_], sequence)
    assert "id 4" not in file
    with pytest.raises(KeyError):
        file["id 4"]


def test_features_do_not_exist_until_all_are_written(tmp_path: Path) -> None:
    def interrupted() -> Iterator[tuple[str, NDArray[np.float16]]]:
        yield "a", np.zeros((1, 2), np.float16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureFile.write(tmp_path, interrupted())
    assert not FeatureFile.exists(tmp_path)


lengths = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=6)


@given(lengths)
def test_a_batchs_masks_mark_the_features_and_padding_is_zero(sizes: list[tuple[int, int]]) -> None:
    examples = [
        Example(
            ACTED[0],
            torch.ones(text_tokens, FUSION.text_width) if text_tokens else None,
            torch.ones(audio_tokens, FUSION.audio_layers, FUSION.audio_width) if audio_tokens else None,
        )
        for text_tokens, audio_tokens in sizes
    ]
    batch = collate(examples, FUSION)
    for tokens, wanted in ((batch.text, [texts for texts, _ in sizes]), (batch.audio, [clips for _, clips in sizes])):
        assert tokens.mask.sum(dim=1).tolist() == wanted
        assert tokens.mask.shape == tokens.features.shape[:2]
        assert tokens.mask.shape[1] == max(1, *wanted)
        assert (tokens.features.flatten(2).amax(dim=2) > 0).equal(tokens.mask)


def test_a_batch_has_the_targets_and_nan_for_an_unknown_valence() -> None:
    batch = collate([Example(ACTED[0], None, None), Example(DIALOGUE[6], None, None)], FUSION)
    assert batch.target.argmax(dim=1).tolist() == [0, 6]
    assert batch.valence.isnan().tolist() == [False, True]
    assert batch.utterances == (ACTED[0], DIALOGUE[6])


def test_corpora_are_drawn_by_their_weights_whatever_their_sizes(features: CachedFeatures) -> None:
    weights = {"ravdess": 3.0, "xed": 4.0}
    pairs = list(islice(batches(features, ACTED + URDU, DIALOGUE + SUBTITLES, corpus_weights=weights), 5))
    assert np.mean([share(clips, "ravdess") for clips, _ in pairs]) == pytest.approx(0.75, abs=0.06)
    assert np.mean([share(texts, "xed") for _, texts in pairs]) == pytest.approx(0.8, abs=0.06)
    assert not any(texts.audio.mask.any() for _, texts in pairs)


def test_without_audio_or_without_texts_there_is_one_batch(features: CachedFeatures) -> None:
    (clips,) = next(iter(batches(features, ACTED, [])))
    assert clips.audio.mask.all()
    # There are no texts of the same emotion, so the text is the utterance's own or none.
    assert clips.text.mask.any(dim=1).float().mean() == pytest.approx(0.3, abs=0.1)
    (texts,) = next(iter(batches(features, [], DIALOGUE)))
    assert texts.text.mask.all()
    assert not texts.audio.mask.any()


def test_audio_can_come_with_a_text_of_the_same_emotion(features: CachedFeatures) -> None:
    clips, _ = next(iter(batches(features, ACTED, DIALOGUE + SUBTITLES, own_text=0.0, matching_text=1.0)))
    label = clips.target.argmax(dim=1)
    assert clips.text.features[:, 0, 0].equal(label.float())


def test_audio_can_come_with_a_neutral_text(features: CachedFeatures) -> None:
    clips, _ = next(
        iter(batches(features, ACTED, DIALOGUE + SUBTITLES, own_text=0.0, matching_text=0.0, neutral_text=1.0))
    )
    assert (clips.text.features[:, 0, 0] == EKMAN7.index("neutral")).all()
    assert len(set(clips.target.argmax(dim=1).tolist())) == len(EKMAN7.categories)


def test_audio_can_come_without_text(features: CachedFeatures) -> None:
    clips, _ = next(iter(batches(features, ACTED, DIALOGUE, own_text=0.0, matching_text=0.0)))
    assert not clips.text.mask.any()


def test_half_of_the_audio_is_not_augmented(features: CachedFeatures) -> None:
    clips, _ = next(iter(batches(features, ACTED, DIALOGUE)))
    augmentation = clips.audio.features[:, 0, 0, 0]
    assert (augmentation == FEATURE_OF["original"]).float().mean() == pytest.approx(0.5, abs=0.12)
    assert set(augmentation.tolist()) == set(FEATURE_OF.values())


def test_without_augmentations_no_audio_is_augmented(features: CachedFeatures) -> None:
    clips, _ = next(iter(batches(features, ACTED, DIALOGUE, augmentation=PLAIN.model_copy(update={"kinds": ()}))))
    assert (clips.audio.features == FEATURE_OF["original"]).all()


def drawn(subject: TrainingBatches[Batch]) -> list[str]:
    return [u.id for batch in next(iter(subject)) for u in batch.utterances]


def test_the_seed_decides_the_draws_and_every_epoch_draws_differently(features: CachedFeatures) -> None:
    first, second, other = (batches(features, ACTED, DIALOGUE, seed=seed) for seed in (1, 1, 2))
    epochs = [drawn(first), drawn(first)]
    assert epochs == [drawn(second), drawn(second)]
    assert epochs[0] != epochs[1]
    assert drawn(other) != epochs[0]


def test_an_evaluation_set_has_the_utterances_with_its_modalities(features: CachedFeatures) -> None:
    both = EvaluationSet(features, ACTED + DIALOGUE, text=True, audio=True)
    assert [both[i].utterance for i in range(len(both))] == ACTED
    texts = EvaluationSet(features, ACTED + DIALOGUE, text=True, audio=False)
    assert len(texts) == len(ACTED + DIALOGUE)
    assert texts[0].audio is None
    assert texts[0].text is not None


TURNS = [replace(URDU[i], group="one speaker", target=ekman_target(["joy" if i else "fear"])) for i in range(5)] + [
    URDU[5]
]
"""Five turns of one speaker, one of another."""


def test_a_baseline_is_of_other_turns_of_the_speaker_with_the_same_augmentation(features: CachedFeatures) -> None:
    speakers = SpeakerSummaries(TURNS, summarize_cached(features), ["noise"])
    rng = np.random.default_rng(0)
    assert [len(speakers.earlier(TURNS[0], count, rng)) for count in (0, 1, 3, 4, 20)] == [0, 1, 3, 4, 4]
    assert speakers.earlier(TURNS[5], 3, rng) == []
    for name in ("original", "noise"):
        for known in speakers.earlier(TURNS[0], 4, rng, name):
            assert known.shape == FUSION.summary_shape
            assert (known[0] == FEATURE_OF[name]).all()
    assert [len(turns) for turns, _ in speakers.by_speaker()] == [5, 1]


def test_all_baselines_of_a_batch_have_the_same_number_of_turns(features: CachedFeatures) -> None:
    drawn = islice(batches(features, TURNS, [], earlier_turns=[0, 2]), 6)
    counts = [
        {int(n) for u, n in zip(batch.utterances, batch.baseline.count, strict=True) if u.group == "one speaker"}
        for (batch,) in drawn
    ]
    assert {0} in counts
    assert {2} in counts
    assert all(len(found) == 1 for found in counts)


def test_a_speaker_with_one_emotion_trains_without_a_baseline(features: CachedFeatures) -> None:
    utterances = [replace(utterance, target=ekman_target(["joy"])) for utterance in TURNS]
    (batch,) = next(iter(batches(features, utterances, [], earlier_turns=[3])))
    assert not batch.baseline.count.any()


def test_an_evaluation_set_draws_the_same_earlier_turns_every_time(features: CachedFeatures) -> None:
    speakers = SpeakerSummaries(TURNS, summarize_cached(features))
    options: dict[str, Any] = {"text": False, "audio": True, "speakers": speakers, "earlier_turns": 3}
    first, second = (EvaluationSet(features, TURNS, **options) for _ in range(2))
    assert [len(first[i].earlier) for i in range(len(TURNS))] == [3, 3, 3, 3, 3, 0]
    for i in range(len(TURNS)):
        np.testing.assert_array_equal(first[i].earlier, second[i].earlier)


@pytest.fixture
def several_emotions(tmp_path: Path) -> tuple[CachedFeatures, list[Utterance]]:
    """One speaker with joy, fear and anger four times each; audio features equal the number of the label."""
    emotions = ("joy", "fear", "anger")
    utterances = [replace(spoken("ravdess", i, emotions[i % 3]), group="one speaker") for i in range(12)]
    FeatureFile.write(tmp_path / "ravdess" / "text", [(u.id, np.zeros((1, 32), np.float16)) for u in utterances])
    clips = [(u.id, np.full((2, 2, 16), u.label, np.float16)) for u in utterances]
    FeatureFile.write(tmp_path / "ravdess" / "original", clips)
    return CachedFeatures(tmp_path, ["ravdess"], ["original"]), utterances


def emotions_of(earlier: Sequence[NDArray[np.float16]]) -> list[str]:
    """The emotions of the earlier turns."""
    return [EKMAN7.categories[int(summary[0, 0, 0])] for summary in earlier]


def test_a_baseline_prefers_turns_of_the_given_emotion(
    several_emotions: tuple[CachedFeatures, list[Utterance]],
) -> None:
    features, utterances = several_emotions
    speakers = SpeakerSummaries(utterances, summarize_cached(features))
    rng = np.random.default_rng(0)
    fear = EKMAN7.index("fear")
    assert emotions_of(speakers.earlier(utterances[0], 4, rng, emotion=fear)) == ["fear"] * 4
    topped_up = emotions_of(speakers.earlier(utterances[0], 6, rng, emotion=fear))
    assert topped_up[:4] == ["fear"] * 4
    assert "fear" not in topped_up[4:]
    assert len(speakers.earlier(utterances[0], 20, rng, emotion=fear)) == 11


def test_an_evaluation_set_can_prefer_turns_of_the_same_emotion(
    several_emotions: tuple[CachedFeatures, list[Utterance]],
) -> None:
    features, utterances = several_emotions
    options: dict[str, Any] = {
        "text": False,
        "audio": True,
        "speakers": SpeakerSummaries(utterances, summarize_cached(features)),
    }
    easy = EvaluationSet(features, utterances, earlier_turns=3, **options)
    hard = EvaluationSet(features, utterances, earlier_turns=3, same_emotion=True, **options)
    assert [emotions_of(hard[i].earlier) for i in range(3)] == [[emotion] * 3 for emotion in ("joy", "fear", "anger")]
    assert any(len(set(emotions_of(easy[i].earlier))) > 1 for i in (0, 1))


@given(st.integers(1, 200), st.floats(0, 0.5), st.integers(0, 2**32 - 1))
def test_dropping_spans_keeps_the_order(length: int, share: float, seed: int) -> None:
    tokens = torch.arange(length)[:, None]
    kept = drop_spans(tokens, share, np.random.default_rng(seed)).flatten().tolist()
    assert kept == sorted(set(kept))
    assert length * (1 - 2 * share) <= len(kept) <= length


def clips(*lengths: int) -> Batch:
    """One clip of ones, one of twos, and so on, each with another category."""
    utterances = [spoken("ravdess", i, EKMAN7.categories[i]) for i in range(len(lengths))]
    features = [torch.full((length, 2, 16), i + 1.0) for i, length in enumerate(lengths)]
    return collate([Example(u, None, clip) for u, clip in zip(utterances, features, strict=True)], FUSION)


@pytest.mark.parametrize("seed", range(5))
def test_mixup_mixes_audio_and_targets_in_the_same_proportion(seed: int) -> None:
    torch.manual_seed(seed)
    batch = clips(4, 6, 5)
    mixed = batch.mixed(0.5)
    assert mixed.target.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert mixed.target.argmax(dim=1).tolist() == batch.target.argmax(dim=1).tolist()
    loudness = (mixed.target[:, :3] * torch.tensor([1.0, 2.0, 3.0])).sum(dim=1)
    torch.testing.assert_close(mixed.audio.features[:, 0, 0, 0], loudness)
    # After the end of the softer clip, the other is alone.
    assert mixed.audio.features[1, 5, 0, 0] == 2
    assert mixed.audio.mask.equal(batch.audio.mask)


def test_texts_are_not_mixed() -> None:
    batch = collate([Example(written("xed", i), torch.ones(3, 32), None) for i in range(3)], FUSION)
    assert batch.mixed(0.5) is batch


def test_mixup_of_0_changes_nothing() -> None:
    batch = clips(4, 6)
    assert batch.mixed(0.0) is batch


def test_masked_bands_are_held_at_the_clips_mean(tmp_path: Path) -> None:
    utterances = [spoken("ravdess", i) for i in range(20)]
    rng = np.random.default_rng(0)
    clips = {u.id: rng.standard_normal((6, 2, 16)).astype(np.float16) for u in utterances}
    FeatureFile.write(tmp_path / "ravdess" / "original", clips.items())
    FeatureFile.write(tmp_path / "ravdess" / "text", [(u.id, np.zeros((1, 32), np.float16)) for u in utterances])
    cached = CachedFeatures(tmp_path, ["ravdess"], ["original"])
    for bands in (0.0, 0.5):
        masking = PLAIN.model_copy(update={"kinds": (), "masked_bands": bands})
        drawn = next(iter(batches(cached, utterances, [], audio=20, augmentation=masking)))[0]
        held = 0
        for utterance, clip in zip(drawn.utterances, drawn.audio.features, strict=True):
            whole = torch.from_numpy(clips[utterance.id].astype(np.float32))
            band = (clip != whole).any(dim=0).any(dim=0)
            torch.testing.assert_close(clip[:, :, band], whole.mean(dim=0)[:, band].expand(6, -1, -1))
            held += int(band.sum())
        assert (held > 0) == (bands > 0)
