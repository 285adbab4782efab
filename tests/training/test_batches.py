"""Cached features, and the batches that are drawn from them."""

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
from training.data.corpus import Split, Utterance, target
from training.data.dataset import (
    Batch,
    EvaluationSet,
    Example,
    Features,
    Speakers,
    TrainingBatches,
    cached_summary,
    collate,
    with_gaps,
)
from training.data.features import FeatureFile

WAYS = {"original": 1.0, "noise": 2.0, "speed": 3.0}


def spoken(corpus: str, number: int, category: str = "joy") -> Utterance:
    name = f"{corpus} {number}"
    return Utterance(
        name, corpus, "en", Split.train, target([category]), 1.0, name, category, text=name, audio=Path(name)
    )


def written(corpus: str, number: int, category: str = "joy") -> Utterance:
    name = f"{corpus} {number}"
    return Utterance(name, corpus, "en", Split.train, target([category]), None, name, category, text=name)


ACTED = [spoken("ravdess", i, category) for i, category in enumerate(EKMAN7.categories)]
HEARD = [spoken("urdu_latif", i) for i in range(63)]
READ = [written("meld", i, category) for i, category in enumerate(EKMAN7.categories)]
POSTED = [written("xed", i, category) for i, category in enumerate(EKMAN7.categories * 9)]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    """Each text's features are the number of its label, each voice's the number of its augmentation."""
    cache = tmp_path_factory.mktemp("cache")
    for corpus, utterances in {"ravdess": ACTED, "urdu_latif": HEARD, "meld": READ, "xed": POSTED}.items():
        texts = [(u.id, np.full((3, 32), u.label, np.float16)) for u in utterances]
        FeatureFile.write(cache / corpus / "text", texts)
        for name, value in WAYS.items() if utterances[0].audio else ():
            FeatureFile.write(
                cache / corpus / name, [(u.id, np.full((2, 2, 16), value, np.float16)) for u in utterances]
            )
    return Features(cache, ["ravdess", "urdu_latif", "meld", "xed"], list(WAYS))


def batches(
    features: Features,
    spoken: list[Utterance],
    written: list[Utterance],
    **options: Any,  # noqa: ANN401 - each has its own type
) -> TrainingBatches[Batch]:
    defaults: dict[str, Any] = {
        "voices": 200,
        "texts": 200,
        "corpus_weights": {},
        "augmentations": ["noise", "speed"],
        "gaps": 0.0,
        "bands": 0.0,
        "own_words": 0.3,
        "matching_words": 0.4,
        "neutral_words": 0.0,
        "neutral": EKMAN7.index("neutral"),
        "earlier_turns": [0],
        "seed": 0,
    }
    chosen = defaults | options
    speakers = Speakers(spoken, cached_summary(features), chosen["augmentations"])
    return TrainingBatches(features, speakers, partial(collate, config=FUSION), spoken, written, **chosen)


def share(batch: Batch, corpus: str) -> float:
    return sum(u.corpus == corpus for u in batch.utterances) / len(batch.utterances)


def test_features_come_back_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    items = {f"id {i}": rng.standard_normal((i + 1, 2, 3)).astype(np.float16) for i in range(4)}
    assert not FeatureFile.exists(tmp_path / "voice")
    FeatureFile.write(tmp_path / "voice", items.items())
    assert FeatureFile.exists(tmp_path / "voice")
    file = FeatureFile(tmp_path / "voice")
    for id_, sequence in items.items():
        assert id_ in file
        np.testing.assert_array_equal(file[id_], sequence)
    assert "id 4" not in file
    with pytest.raises(KeyError):
        file["id 4"]


def test_features_written_by_half_do_not_exist(tmp_path: Path) -> None:
    def broken_off() -> Iterator[tuple[str, NDArray[np.float16]]]:
        yield "a", np.zeros((1, 2), np.float16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureFile.write(tmp_path, broken_off())
    assert not FeatureFile.exists(tmp_path)


lengths = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=6)


@given(lengths)
def test_a_batchs_masks_say_what_is_there_and_the_rest_is_zero(sizes: list[tuple[int, int]]) -> None:
    examples = [
        Example(
            ACTED[0],
            torch.ones(words, FUSION.text_width) if words else None,
            torch.ones(sounds, FUSION.audio_layers, FUSION.audio_width) if sounds else None,
        )
        for words, sounds in sizes
    ]
    batch = collate(examples, FUSION)
    for tokens, wanted in ((batch.text, [w for w, _ in sizes]), (batch.voice, [s for _, s in sizes])):
        assert tokens.mask.sum(dim=1).tolist() == wanted
        assert tokens.mask.shape == tokens.features.shape[:2]
        assert tokens.mask.shape[1] == max(1, *wanted)
        assert (tokens.features.flatten(2).amax(dim=2) > 0).equal(tokens.mask)


def test_a_batch_has_each_utterances_target_and_no_number_where_the_valence_is_unknown() -> None:
    batch = collate([Example(ACTED[0], None, None), Example(READ[6], None, None)], FUSION)
    assert batch.target.argmax(dim=1).tolist() == [0, 6]
    assert batch.valence.isnan().tolist() == [False, True]
    assert batch.utterances == (ACTED[0], READ[6])


def test_corpora_are_drawn_by_their_weights_whatever_their_sizes(features: Features) -> None:
    weights = {"ravdess": 3.0, "xed": 4.0}
    pairs = list(islice(batches(features, ACTED + HEARD, READ + POSTED, corpus_weights=weights), 5))
    assert np.mean([share(voices, "ravdess") for voices, _ in pairs]) == pytest.approx(0.75, abs=0.06)
    assert np.mean([share(texts, "xed") for _, texts in pairs]) == pytest.approx(0.8, abs=0.06)
    assert not any(texts.voice.mask.any() for _, texts in pairs)


def test_only_spoken_or_only_written_corpora_give_one_batch(features: Features) -> None:
    (voices,) = next(iter(batches(features, ACTED, [])))
    assert voices.voice.mask.all()
    # There are no texts of the same emotion, so the words are an utterance's own or none.
    assert voices.text.mask.any(dim=1).float().mean() == pytest.approx(0.3, abs=0.1)
    (texts,) = next(iter(batches(features, [], READ)))
    assert texts.text.mask.all()
    assert not texts.voice.mask.any()


def test_a_voice_comes_with_words_of_its_emotion(features: Features) -> None:
    voices, _ = next(iter(batches(features, ACTED, READ + POSTED, own_words=0.0, matching_words=1.0)))
    label = voices.target.argmax(dim=1)
    assert voices.text.features[:, 0, 0].equal(label.float())


def test_a_voice_comes_with_neutral_words_whatever_it_says(features: Features) -> None:
    options = {"own_words": 0.0, "matching_words": 0.0, "neutral_words": 1.0}
    voices, _ = next(iter(batches(features, ACTED, READ + POSTED, **options)))
    assert (voices.text.features[:, 0, 0] == EKMAN7.index("neutral")).all()
    assert len(set(voices.target.argmax(dim=1).tolist())) == len(EKMAN7.categories)


def test_a_voice_comes_with_no_words_where_none_are_asked_for(features: Features) -> None:
    voices, _ = next(iter(batches(features, ACTED, READ, own_words=0.0, matching_words=0.0)))
    assert not voices.text.mask.any()


def test_half_of_the_voices_are_as_recorded(features: Features) -> None:
    voices, _ = next(iter(batches(features, ACTED, READ)))
    way = voices.voice.features[:, 0, 0, 0]
    assert (way == WAYS["original"]).float().mean() == pytest.approx(0.5, abs=0.12)
    assert set(way.tolist()) == set(WAYS.values())


def test_without_augmentations_all_voices_are_as_recorded(features: Features) -> None:
    voices, _ = next(iter(batches(features, ACTED, READ, augmentations=[])))
    assert (voices.voice.features == WAYS["original"]).all()


def drawn(subject: TrainingBatches[Batch]) -> list[str]:
    return [u.id for batch in next(iter(subject)) for u in batch.utterances]


def test_the_seed_decides_what_is_drawn_and_every_epoch_draws_anew(features: Features) -> None:
    first, second, other = (batches(features, ACTED, READ, seed=seed) for seed in (1, 1, 2))
    epochs = [drawn(first), drawn(first)]
    assert epochs == [drawn(second), drawn(second)]
    assert epochs[0] != epochs[1]
    assert drawn(other) != epochs[0]


def test_an_evaluation_has_who_has_the_modalities_and_only_those(features: Features) -> None:
    both = EvaluationSet(features, ACTED + READ, text=True, voice=True)
    assert [both[i].utterance for i in range(len(both))] == ACTED
    texts = EvaluationSet(features, ACTED + READ, text=True, voice=False)
    assert len(texts) == len(ACTED + READ)
    assert texts[0].voice is None
    assert texts[0].text is not None


SAID = [replace(HEARD[i], group="one speaker", target=target(["joy" if i else "fear"])) for i in range(5)] + [HEARD[5]]
"""Five turns of one speaker, one of another."""


def test_a_baseline_is_of_other_turns_of_the_speaker_recorded_in_the_same_way(features: Features) -> None:
    speakers = Speakers(SAID, cached_summary(features), ["noise"])
    rng = np.random.default_rng(0)
    assert [len(speakers.earlier(SAID[0], count, rng)) for count in (0, 1, 3, 4, 20)] == [0, 1, 3, 4, 4]
    assert speakers.earlier(SAID[5], 3, rng) == []
    for name in ("original", "noise"):
        for known in speakers.earlier(SAID[0], 4, rng, name):
            assert known.shape == FUSION.summary_shape
            assert (known[0] == WAYS[name]).all()
    assert [len(turns) for turns, _ in speakers.voices()] == [5, 1]


def test_all_voices_of_a_batch_have_as_many_earlier_turns_as_there_are(features: Features) -> None:
    drawn = islice(batches(features, SAID, [], earlier_turns=[0, 2]), 6)
    counts = [
        {int(n) for u, n in zip(batch.utterances, batch.baseline.count, strict=True) if u.group == "one speaker"}
        for (batch,) in drawn
    ]
    assert {0} in counts
    assert {2} in counts
    assert all(len(found) == 1 for found in counts)


def test_who_is_heard_in_one_emotion_only_trains_without_a_baseline(features: Features) -> None:
    said = [replace(utterance, target=target(["joy"])) for utterance in SAID]
    (batch,) = next(iter(batches(features, said, [], earlier_turns=[3])))
    assert not batch.baseline.count.any()


def test_an_evaluation_draws_the_same_earlier_turns_every_time(features: Features) -> None:
    speakers = Speakers(SAID, cached_summary(features))
    options: dict[str, Any] = {"text": False, "voice": True, "speakers": speakers, "earlier_turns": 3}
    first, second = (EvaluationSet(features, SAID, **options) for _ in range(2))
    assert [len(first[i].earlier) for i in range(len(SAID))] == [3, 3, 3, 3, 3, 0]
    for i in range(len(SAID)):
        np.testing.assert_array_equal(first[i].earlier, second[i].earlier)


@pytest.fixture
def moody(tmp_path: Path) -> tuple[Features, list[Utterance]]:
    """One speaker, four times in joy, in fear and in anger; each voice's features are the number of its label."""
    moods = ("joy", "fear", "anger")
    said = [replace(spoken("ravdess", i, moods[i % 3]), group="one speaker") for i in range(12)]
    FeatureFile.write(tmp_path / "ravdess" / "text", [(u.id, np.zeros((1, 32), np.float16)) for u in said])
    voices = [(u.id, np.full((2, 2, 16), u.label, np.float16)) for u in said]
    FeatureFile.write(tmp_path / "ravdess" / "original", voices)
    return Features(tmp_path, ["ravdess"], ["original"]), said


def heard(earlier: Sequence[NDArray[np.float16]]) -> list[str]:
    """The emotions of the earlier turns."""
    return [EKMAN7.categories[int(summary[0, 0, 0])] for summary in earlier]


def test_a_baseline_of_one_mood_has_its_turns_before_all_others(moody: tuple[Features, list[Utterance]]) -> None:
    features, said = moody
    speakers = Speakers(said, cached_summary(features))
    rng = np.random.default_rng(0)
    fear = EKMAN7.index("fear")
    assert heard(speakers.earlier(said[0], 4, rng, mood=fear)) == ["fear"] * 4
    topped_up = heard(speakers.earlier(said[0], 6, rng, mood=fear))
    assert topped_up[:4] == ["fear"] * 4
    assert "fear" not in topped_up[4:]
    assert len(speakers.earlier(said[0], 20, rng, mood=fear)) == 11


def test_an_evaluation_in_one_mood_reads_against_turns_in_the_same_emotion(
    moody: tuple[Features, list[Utterance]],
) -> None:
    features, said = moody
    options: dict[str, Any] = {"text": False, "voice": True, "speakers": Speakers(said, cached_summary(features))}
    hard = EvaluationSet(features, said, earlier_turns=3, one_mood=True, **options)
    assert [heard(hard[i].earlier) for i in range(3)] == [[mood] * 3 for mood in ("joy", "fear", "anger")]
    assert any(
        len(set(heard(EvaluationSet(features, said, earlier_turns=3, **options)[i].earlier))) > 1 for i in (0, 1)
    )


@given(st.integers(1, 200), st.floats(0, 0.5), st.integers(0, 2**32 - 1))
def test_gaps_leave_a_part_in_its_order(length: int, share: float, seed: int) -> None:
    tokens = torch.arange(length)[:, None]
    kept = with_gaps(tokens, share, np.random.default_rng(seed)).flatten().tolist()
    assert kept == sorted(set(kept))
    assert length * (1 - 2 * share) <= len(kept) <= length


def voices(*lengths: int) -> Batch:
    """One voice of ones, of twos, and so on; each of a category of its own."""
    utterances = [spoken("ravdess", i, EKMAN7.categories[i]) for i in range(len(lengths))]
    features = [torch.full((length, 2, 16), i + 1.0) for i, length in enumerate(lengths)]
    return collate([Example(u, None, voice) for u, voice in zip(utterances, features, strict=True)], FUSION)


@pytest.mark.parametrize("seed", range(5))
def test_mixed_voices_have_mixed_targets_of_which_the_first_is_larger(seed: int) -> None:
    torch.manual_seed(seed)
    batch = voices(4, 6, 5)
    mixed = batch.mixed(0.5)
    assert mixed.target.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert mixed.target.argmax(dim=1).tolist() == batch.target.argmax(dim=1).tolist()
    loudness = (mixed.target[:, :3] * torch.tensor([1.0, 2.0, 3.0])).sum(dim=1)
    torch.testing.assert_close(mixed.voice.features[:, 0, 0, 0], loudness)
    # Where the softer voice has ended, the other is alone.
    assert mixed.voice.features[1, 5, 0, 0] == 2
    assert mixed.voice.mask.equal(batch.voice.mask)


def test_texts_are_not_mixed() -> None:
    batch = collate([Example(written("xed", i), torch.ones(3, 32), None) for i in range(3)], FUSION)
    assert batch.mixed(0.5) is batch


def test_no_mixing_is_none() -> None:
    batch = voices(4, 6)
    assert batch.mixed(0.0) is batch


def test_bands_of_a_voice_are_held_at_its_mean(tmp_path: Path) -> None:
    said = [spoken("ravdess", i) for i in range(20)]
    rng = np.random.default_rng(0)
    voices = {u.id: rng.standard_normal((6, 2, 16)).astype(np.float16) for u in said}
    FeatureFile.write(tmp_path / "ravdess" / "original", voices.items())
    FeatureFile.write(tmp_path / "ravdess" / "text", [(u.id, np.zeros((1, 32), np.float16)) for u in said])
    cached = Features(tmp_path, ["ravdess"], ["original"])
    for bands in (0.0, 0.5):
        drawn = next(iter(batches(cached, said, [], voices=20, augmentations=[], bands=bands)))[0]
        held = 0
        for utterance, voice in zip(drawn.utterances, drawn.voice.features, strict=True):
            whole = torch.from_numpy(voices[utterance.id].astype(np.float32))
            band = (voice != whole).any(dim=0).any(dim=0)
            torch.testing.assert_close(voice[:, :, band], whole.mean(dim=0)[:, band].expand(6, -1, -1))
            held += int(band.sum())
        assert (held > 0) == (bands > 0)
