"""The classical baselines, on small corpora laid out as their publishers do."""

from pathlib import Path

import numpy as np
import opensmile
import pytest
import yaml
from numpy.typing import NDArray
from scipy.io import savemat
from sklearn.preprocessing import StandardScaler

from shared.audio.decoder import DecodedAudio
from tests.audio_clips import tone, wav
from training.__main__ import run_recipe
from training.data.acoustic_features import extract
from training.data.corpora import urdu_sindhi
from training.data.registry import load
from training.data.utterance import CorpusMissing, Leakage, Utterance
from training.recipes.classical import Report, classical

CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs" / "classical").glob("*.yaml"))
SMALL = ["--folds=2", "--trees=5", "--hidden=[4]"]
CLIPS = 22
"""Clips per label: the network holds out a tenth of half of them, at least one of each label."""


def write_urdu_sindhi(folder: Path) -> None:
    """Features that give the label away, each set of another size."""
    rng = np.random.default_rng(0)
    for language in urdu_sindhi.CORPORA.values():
        for size, name in enumerate(urdu_sindhi.FEATURES.values(), start=8):
            place = folder / language / name / "Matfiles"
            place.mkdir(parents=True)
            for i, label in enumerate(urdu_sindhi.LABELS):
                for number in range(CLIPS):
                    vector = rng.normal(scale=0.1, size=(1, size))
                    vector[0, i] += 5
                    savemat(place / f"{label}_{number:04}.mat", {"feats": vector, "rate": 16_000})


def write_recordings(data: Path) -> None:
    """RAVDESS's first twelve actors, and twelve speakers of URDU with every label; pitch gives the label away."""
    for speaker in range(1, 13):
        for emotion in range(1, 9):
            name = f"Actor_{speaker:02}/03-01-{emotion:02}-01-01-01-{speaker:02}.wav"
            write_tone(data / "ravdess" / name, 80 + 40 * emotion + speaker)
        for i, label in enumerate(("Neutral", "Happy", "Sad", "Angry")):
            write_tone(data / "urdu_latif" / label / f"SM{speaker}_F{i}_{label[0]}{speaker:02}.wav", 90 + 60 * i)


def write_tone(path: Path, hertz: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav(tone(0.4, hertz)))


@pytest.fixture(scope="module")
def acoustic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("acoustic")
    write_urdu_sindhi(data / "urdu_sindhi")
    write_recordings(data)
    return data


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("extracted")


@pytest.fixture
def one(acoustic: Path) -> list[Utterance]:
    return load(acoustic, ["urdu_latif"])[:1]


def report(out: Path) -> Report:
    return Report.model_validate_json(out.read_text())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_measures_every_classifier_on_every_feature_set(
    config: Path, acoustic: Path, extracted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results" / "figures.json"
    places = [f"--data={acoustic}", f"--cache={extracted}", f"--out={out}"]
    options = yaml.safe_load(config.read_text())
    published = options["corpus"] in urdu_sindhi.CORPORA
    names = options["features"] if published else ["egemaps", "prosody"]  # extracting takes its time
    run_recipe(["classical", f"--config={config}", *places, *SMALL, f"--features=[{','.join(names)}]"])
    found = report(out)
    assert found.test_corpus == options.get("test_corpus", options["corpus"])
    named = [(result.features, result.classifier) for result in found.results]
    assert named == [(name, kind) for name in names for kind in options["classifiers"]]
    across = "test_corpus" in options
    for result in found.results:
        assert len(result.folds) == (1 if across else 2)
        assert result.pooled.count == sum(fold.count for fold in result.folds)
        assert result.mean["uar"] == pytest.approx(np.mean([fold.uar for fold in result.folds]))
    if published:
        machine = found.results[0]
        assert (machine.classifier, machine.mean["uar"], machine.speakers) == ("svm", 1.0, None)
        assert "Sarcasm" in machine.pooled.classes
    else:
        assert {result.speakers for result in found.results} == {12}


def test_there_is_a_configuration_for_each_direction_and_corpus() -> None:
    pairs = {(options["corpus"], options.get("test_corpus")) for options in map(yaml.safe_load, texts())}
    syed = set(urdu_sindhi.CORPORA)
    assert {(corpus, other) for corpus in syed for other in ({None} | syed) - {corpus}} <= pairs


def texts() -> list[str]:
    return [config.read_text() for config in CONFIGS]


def test_the_scaler_sees_only_the_clips_that_the_fold_trains_on(
    acoustic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[NDArray[np.float32]] = []

    class Seen(StandardScaler):
        def fit(self, X: NDArray[np.float32], y: object = None, sample_weight: object = None) -> StandardScaler:  # noqa: N803
            fitted.append(X)
            return super().fit(X)

    monkeypatch.setattr("training.recipes.classical.StandardScaler", Seen)
    classical(acoustic, tmp_path, tmp_path / "out.json", "urdu_syed", folds=2)
    everything = urdu_sindhi.load(acoustic / "urdu_sindhi", "urdu_syed", "egemaps").features
    assert [len(rows) for rows in fitted] == [len(everything) / 2] * 2
    together = np.concatenate(fitted)  # the two halves, and nothing twice
    assert np.array_equal(np.sort(together[:, 0]), np.sort(everything[:, 0]))


def test_a_corpus_without_speakers_cannot_be_split_by_them(acoustic: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not identify its speakers, so only the split 'random'"):
        classical(acoustic, tmp_path, tmp_path / "out.json", "sindhi_syed", split="speaker")


def test_with_two_corpora_only_labels_of_both_are_used(acoustic: Path, extracted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    classical(acoustic, extracted, out, "urdu_syed", "sindhi_syed", labels="ekman7")
    assert "sarcasm" not in report(out).results[0].labels


def test_a_corpus_is_not_tested_on_itself(acoustic: Path, tmp_path: Path) -> None:
    with pytest.raises(Leakage, match="urdu_syed is both trained on and tested on"):
        classical(acoustic, tmp_path, tmp_path / "out.json", "urdu_syed", "urdu_syed")


def test_corpora_with_too_few_labels_in_common_say_which_they_have(acoustic: Path, tmp_path: Path) -> None:
    (tmp_path / "urdu_sindhi").mkdir()
    (tmp_path / "urdu_sindhi" / "Feats - Urdu").symlink_to(acoustic / "urdu_sindhi" / "Feats - Urdu")
    place = tmp_path / "urdu_sindhi" / "Feats - Sindhi" / "eGeMAPS funcs" / "Matfiles"
    place.mkdir(parents=True)
    savemat(place / "Sarcasm_0001.mat", {"feats": np.zeros((1, 8))})
    with pytest.raises(ValueError, match=r"have Sarcasm in common, of Anger, .* and Sarcasm: at least two labels"):
        classical(tmp_path, tmp_path, tmp_path / "out.json", "urdu_syed", "sindhi_syed")


def test_features_are_extracted_once_and_for_new_recordings_alone(
    acoustic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterances = load(acoustic, ["urdu_latif"])[:3]
    first = extract(utterances[:2], "egemaps", tmp_path)
    decoded: list[Path] = []
    monkeypatch.setattr(
        "training.data.acoustic_features.decode", lambda path: decoded.append(path) or DecodedAudio(tone(0.4))
    )
    second = extract(utterances[::-1], "egemaps", tmp_path)
    assert decoded == [utterances[2].audio]
    np.testing.assert_array_equal(second[:0:-1], first)


@pytest.mark.parametrize(
    ("features", "count"), [("egemaps", 88), ("compare", 6373), ("is09", 384), ("is10", 1582), ("prosody", 124)]
)
def test_the_sizes_of_the_feature_sets(one: list[Utterance], tmp_path: Path, features: str, count: int) -> None:
    assert extract(one, features, tmp_path).shape == (1, count)


def test_a_configuration_file_of_opensmile_is_a_feature_set(one: list[Utterance], tmp_path: Path) -> None:
    path = opensmile.Smile(opensmile.FeatureSet.IS09).config_path
    np.testing.assert_array_equal(extract(one, path, tmp_path), extract(one, "is09", tmp_path))
    assert len(list(tmp_path.glob("IS09_emotion-*.npz"))) == 1


def test_the_error_for_an_unknown_feature_set_lists_the_known_ones(one: list[Utterance], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"'gemaps' is neither one of egemaps, .* https://github.com/audeering/opensmile"
    ):
        extract(one, "gemaps", tmp_path)
    with pytest.raises(ValueError, match="urdu_syed is published without 'gemaps': use one of egemaps"):
        urdu_sindhi.load(tmp_path, "urdu_syed", "gemaps")


def test_the_error_names_a_recording_that_is_too_short(tmp_path: Path) -> None:
    write_tone(tmp_path / "urdu_latif" / "Sad" / "SM1_F1_S1.wav", 200)
    (tmp_path / "urdu_latif" / "Sad" / "SM1_F1_S1.wav").write_bytes(wav(tone(0.01)))
    with pytest.raises(ValueError, match=r"SM1_F1_S1\.wav is too short for the features egemaps"):
        extract(load(tmp_path, ["urdu_latif"]), "egemaps", tmp_path)


def test_a_sample_at_full_scale_does_not_wrap(
    one: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for peak in (0.999, 1.0):
        audio = DecodedAudio((peak * np.sign(tone(0.4))).astype(np.float32))
        monkeypatch.setattr("training.data.acoustic_features.decode", lambda path, audio=audio: audio)
        found.append(extract(one, "is09", tmp_path / str(peak)))
    np.testing.assert_allclose(found[0], found[1], rtol=0.05, atol=0.05)


def test_the_error_for_missing_features_says_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(CorpusMissing, match=r"urdu_syed is not at .*Matfiles: get it from https://zenodo.org/records"):
        urdu_sindhi.load(tmp_path, "urdu_syed", "is10")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("Love_0001.mat", {"feats": np.zeros((1, 8))}, "'Love' is not one of the labels Anger"),
        (
            "Anger_9999.mat",
            {"feats": np.zeros((1, 3))},
            r"Anger_9999\.mat holds 3 features, where Anger_0000\.mat has 8",
        ),
        ("Anger_9999.mat", {"feats": "none"}, r"Anger_9999\.mat holds no numeric array"),
    ],
)
def test_the_error_names_a_file_that_does_not_fit_the_corpus(
    acoustic: Path, tmp_path: Path, name: str, content: dict[str, object], message: str
) -> None:
    place = tmp_path / "Feats - Urdu" / "eGeMAPS funcs" / "Matfiles"
    place.mkdir(parents=True)
    first = acoustic / "urdu_sindhi" / "Feats - Urdu" / "eGeMAPS funcs" / "Matfiles" / "Anger_0000.mat"
    (place / first.name).write_bytes(first.read_bytes())
    savemat(place / name, content)
    with pytest.raises(ValueError, match=message):
        urdu_sindhi.load(tmp_path, "urdu_syed", "egemaps")


def test_an_empty_folder_of_features_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Feats - Urdu" / "eGeMAPS funcs" / "Matfiles").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"Matfiles holds no \.mat files"):
        urdu_sindhi.load(tmp_path, "urdu_syed", "egemaps")
