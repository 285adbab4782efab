"""Put a bundle together: encoders, fusion, calibration, and a manifest that says what it can do."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.optimize import minimize_scalar

from shared.domain.bundle import Calibration, Component, ModelBundle
from shared.domain.emotion import EKMAN7
from shared.modeling.fusion import FusionEnsemble
from shared.modeling.loading import MANIFEST, sha256
from shared.modeling.weights import REVISIONS
from training.data.corpus import Split, Utterance, views
from training.data.dataset import Features
from training.data.load import CORPORA, load
from training.metrics import metrics
from training.recipes.evaluate import Fusion, load_run, predict, softmax

ACCEPTED_RISK = 0.5
"""Tenor abstains where fewer than half of the validation answers of that confidence are right."""


def export_bundle(
    data: Path,
    cache: Path,
    encoders: Path,
    runs: Sequence[Path],
    out: Path,
    name: str = "compact",
    version: str = "1",
    licence: str = "as its training data allow",
    cross_validation: Path | None = None,
) -> None:
    """Calibrate on the validation splits, measure, and write the bundle to `out`.

    Args:
        data: holds the corpora.
        cache: written by `cache_features`.
        encoders: written by `build_encoders`.
        runs: written by `train` with different seeds; they are averaged.
        out: the bundle's folder.
        name: the bundle's.
        version: the bundle's.
        licence: the bundle's, as the manifest states it.
        cross_validation: written by `evaluate` with `folds`; its figures go into the manifest.
    """
    out.mkdir(parents=True, exist_ok=True)
    for source in (encoders / "text_encoder.safetensors", encoders / "tokenizer.json"):
        shutil.copyfile(source, out / source.name)
    shutil.copyfile(encoders / "speech_encoder.safetensors", out / "speech_encoder.safetensors")
    fusions = [f"fusion-{number}.safetensors" for number in range(1, len(runs) + 1)]
    for run, name_in_bundle in zip(runs, fusions, strict=True):
        shutil.copyfile(run / "fusion.safetensors", out / name_in_bundle)
    options = json.loads((encoders / "encoders.json").read_text())
    loaded = [load_run(run) for run in runs]
    trained, model = loaded[0][0], FusionEnsemble([member for _, member in loaded])
    utterances = load(data, trained.corpora)
    features = Features(cache, trained.corpora, ["original"])
    held_out = {split: [u for u in utterances if u.split is split] for split in (Split.validation, Split.test)}
    folds = {} if cross_validation is None else json.loads(cross_validation.read_text())
    calibration = calibrate(model, features, held_out[Split.validation])
    bundle = ModelBundle(
        name=name,
        version=version,
        label_space=EKMAN7,
        asr=Component(kind="faster_whisper", source=f"Systran/faster-whisper-base@{REVISIONS['base']}", licence="MIT"),
        text_encoder=Component(
            kind="xlmr_vocabulary_bert",
            source=f"{options['sources']['text_encoder']}, its vocabulary pruned",
            licence="MIT",
            files=_digests(out, "text_encoder.safetensors", "tokenizer.json"),
            options=options["text_encoder"],
        ),
        speech_encoder=Component(
            kind="whisper_encoder",
            source=f"{options['sources']['speech_encoder']}, its encoder without the last layer",
            licence="MIT",
            files=_digests(out, "speech_encoder.safetensors"),
            options=options["speech_encoder"],
        ),
        fusion=Component(
            kind="cross_attention",
            source="trained by Tenor's recipes on the corpora below",
            licence=licence,
            files=_digests(out, *fusions),
            options=trained.fusion.model_dump(),
        ),
        calibration=calibration,
        metrics={
            **{split.value: measure(model, features, part, calibration) for split, part in held_out.items() if part},
            "cross_validation": {name: _summary(result) for name, result in folds.items()},
        },
        training_data=[{"name": corpus, "licence": CORPORA[corpus].licence} for corpus in trained.corpora],
        licence=licence,
    )
    text = yaml.safe_dump(bundle.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (out / MANIFEST).write_text(text, encoding="utf-8")


def calibrate(model: Fusion, features: Features, utterances: Sequence[Utterance]) -> Calibration:
    """The temperatures that make the true labels most likely, and the confidence from which half are right."""
    temperatures: dict[str, float] = {}
    confidences, rights = [], []
    for kind in ("both", "text", "voice"):
        parts = [
            predict(model, features, part, text=text, voice=voice)[:2] for part, text, voice in _of(kind, utterances)
        ]
        labels = np.array([u.label for found, _ in parts for u in found])
        if not labels.size:
            temperatures[kind] = 1.0
            continue
        logits = np.concatenate([logits for _, logits in parts])
        temperatures[kind] = best_temperature(labels, logits)
        probabilities = softmax(logits, temperatures[kind])
        confidences.append(probabilities.max(axis=1))
        rights.append(probabilities.argmax(axis=1) == labels)
    return Calibration(
        temperature=round(temperatures["both"], 3),
        text_temperature=round(temperatures["text"], 3),
        audio_temperature=round(temperatures["voice"], 3),
        abstain_below=abstention_threshold(np.concatenate(confidences), np.concatenate(rights)),
    )


def best_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """Minimises the negative log-likelihood (Guo et al. 2017)."""

    def loss(temperature: float) -> float:
        chosen = softmax(logits, temperature)[np.arange(len(labels)), labels]
        return float(-np.log(np.maximum(chosen, 1e-12)).mean())

    found: Any = minimize_scalar(loss, bounds=(0.2, 10.0), method="bounded")
    return float(found.x)


def abstention_threshold(confidence: np.ndarray, right: np.ndarray, width: float = 0.05, enough: int = 50) -> float:
    """The lowest confidence, in steps of 0.01, from which upward no more answers than `ACCEPTED_RISK` are wrong.

    Answers are counted within `width` of a step; where there are not `enough`, a step says nothing.
    """
    for step in range(100, -1, -1):
        near = np.abs(confidence - step / 100) <= width
        if near.sum() >= enough and 1 - right[near].mean() > ACCEPTED_RISK:
            return min(step + 1, 100) / 100
    return 0.0


def measure(
    model: Fusion, features: Features, utterances: Sequence[Utterance], calibration: Calibration
) -> dict[str, dict[str, float]]:
    """The figures of every view, calibrated as they are served.

    `answered` is the share of utterances for which no abstention is due, `answered_accuracy` how many of them are
    right; the other figures count all.
    """
    figures = {}
    for name, (corpus, text, voice) in views(utterances).items():
        part = [u for u in utterances if u.corpus == corpus]
        found, logits, _ = predict(model, features, part, text=text, voice=voice)
        if found:
            temperature = calibration.temperature_of(text=text, voice=voice)
            labels, probabilities = np.array([u.label for u in found]), softmax(logits, temperature)
            answered = probabilities.max(axis=1) >= calibration.abstain_below
            right = probabilities.argmax(axis=1) == labels
            figures[name] = _summary(metrics(labels.tolist(), probabilities).model_dump()) | {
                "answered": round(float(answered.mean()), 4),
                "answered_accuracy": round(float(right[answered].mean()), 4) if answered.any() else 0.0,
            }
    return figures


def _of(kind: str, utterances: Sequence[Utterance]) -> list[tuple[list[Utterance], bool, bool]]:
    wanted = {"both": (True, True), "text": (True, False), "voice": (False, True)}[kind]
    return [
        ([u for u in utterances if u.corpus == corpus], text, voice)
        for corpus, text, voice in views(utterances).values()
        if (text, voice) == wanted
    ]


def _summary(result: dict[str, float]) -> dict[str, float]:
    return {key: round(result[key], 4) for key in ("count", "weighted_f1", "uar", "ece")}


def _digests(folder: Path, *names: str) -> dict[str, str]:
    return {name: sha256(folder / name) for name in names}
