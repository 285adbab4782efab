"""Put a bundle together: encoders, fusion, calibration, and a manifest that says what it can do."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.domain.bundle import Calibration, Component, ModelBundle
from shared.domain.emotion import EKMAN7
from shared.modeling.loading import sha256, write_manifest
from shared.modeling.weights import WHISPER_BASE
from training.calibration import ACCEPTED_RISK, calibrate
from training.data.corpus import Split, Utterance, views
from training.data.load import corpus_named
from training.recipes.evaluate import EARLIER_TURNS, Reader, Trained, predict, read
from training.report import Figures, Predictions, Report, summarize


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
    accepted_risk: float = ACCEPTED_RISK,
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
        cross_validation: the `metrics.json` written by `evaluate` with `folds`; its figures go into the manifest.
        accepted_risk: Tenor abstains so that no larger share of its answers is wrong, see `abstention_threshold`.
    """
    out.mkdir(parents=True, exist_ok=True)
    for source in (encoders / "text_encoder.safetensors", encoders / "tokenizer.json"):
        shutil.copyfile(source, out / source.name)
    shutil.copyfile(encoders / "speech_encoder.safetensors", out / "speech_encoder.safetensors")
    fusions = [f"fusion-{number}.safetensors" for number in range(1, len(runs) + 1)]
    for run, name_in_bundle in zip(runs, fusions, strict=True):
        shutil.copyfile(run / "fusion.safetensors", out / name_in_bundle)
    options = json.loads((encoders / "encoders.json").read_text())
    models = [Trained.load(run) for run in runs]
    trained = models[0].run
    utterances = trained.utterances(data)
    held_out = {split: [u for u in utterances if u.split is split] for split in (Split.validation, Split.test)}
    readers = {split: [Reader(model, part, cache) for model in models] for split, part in held_out.items()}
    folds = {} if cross_validation is None else Report.model_validate_json(cross_validation.read_text()).views
    calibration = calibrate(readings(readers[Split.validation]), accepted_risk)
    bundle = ModelBundle(
        name=name,
        version=version,
        label_space=EKMAN7,
        asr=WHISPER_BASE,
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
            **{split.value: measure(readers[split], calibration) for split, part in held_out.items() if part},
            "cross_validation": {name: _summary(result) for name, result in folds.items()},
        },
        training_data=[{"name": corpus, "licence": corpus_named(corpus).licence} for corpus in trained.corpora],
        licence=licence,
    )
    write_manifest(out, bundle)


def readings(readers: Sequence[Reader]) -> dict[str, tuple[NDArray[np.integer], NDArray[np.floating]]]:
    """The true labels and the logits of all views that read both modalities, the text alone, and the voice alone."""
    found: dict[str, tuple[NDArray[np.integer], NDArray[np.floating]]] = {}
    for kind in ("both", "text", "voice"):
        parts = [
            predict(readers, corpus, text=text, voice=voice, earlier_turns=turns)[:2]
            for corpus, text, voice in _of(kind, readers[0].utterances)
            for turns in (EARLIER_TURNS if voice and readers[0].model.run.fusion.relative else (0,))
        ]
        labels = np.array([u.label for part, _ in parts for u in part])
        if labels.size:
            found[kind] = labels, np.concatenate([logits for _, logits in parts])
    return found


def measure(readers: Sequence[Reader], calibration: Calibration) -> dict[str, dict[str, Any]]:
    """The figures of every view, calibrated as they are served.

    `answered` is the share of utterances for which no abstention is due, `answered_accuracy` how many of them are
    right; the other figures count all.
    """
    figures = {}
    for name, (corpus, text, voice) in views(readers[0].utterances).items():
        temperature = calibration.temperature_of(text=text, voice=voice)
        for turns in EARLIER_TURNS if voice and readers[0].model.run.fusion.relative else (None,):
            options: Any = {"text": text, "voice": voice, "earlier_turns": turns, "temperature": temperature}
            if found := read(name, [readers], corpus=corpus, **options):
                figures[found.label] = _summary(summarize(found)) | _answered(found, calibration.abstain_below)
    return figures


def _answered(found: Predictions, threshold: float) -> dict[str, float]:
    answered = found.probabilities.max(axis=1) >= threshold
    right = found.probabilities.argmax(axis=1) == found.labels
    accuracy = float(right[answered].mean()) if answered.any() else 0.0
    return {"answered": round(float(answered.mean()), 4), "answered_accuracy": round(accuracy, 4)}


def _of(kind: str, utterances: Sequence[Utterance]) -> list[tuple[str, bool, bool]]:
    wanted = {"both": (True, True), "text": (True, False), "voice": (False, True)}[kind]
    return [view for view in views(utterances).values() if view[1:] == wanted]


def _summary(found: Figures) -> dict[str, Any]:
    intervals = {name: found.intervals[name] for name in ("weighted_f1", "uar") if name in found.intervals}
    return {
        **{name: round(getattr(found.metrics, name), 4) for name in ("count", "accuracy", "weighted_f1", "uar", "ece")},
        "intervals": {name: [round(low, 4), round(high, 4)] for name, (low, high) in intervals.items()},
    }


def _digests(folder: Path, *names: str) -> dict[str, str]:
    return {name: sha256(folder / name) for name in names}
