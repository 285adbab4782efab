"""The recipe `export_bundle`: writes a bundle of encoders, fusion, calibration and manifest."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared.domain.bundle import Calibration, Component, ModelBundle
from shared.modeling.loading import ENCODERS_FILE, PRETRAINED_KIND, sha256, write_manifest
from shared.modeling.whisper_weights import transcriber_component
from training import runs as run_folder
from training.args import AudioBranch, TextBranch, check_context_turns
from training.calibration import ACCEPTED_RISK, Modalities, calibrate
from training.data.registry import corpus_named
from training.data.utterance import Split
from training.data.views import views
from training.predictions import EARLIER_TURNS, Ensemble, UtterancePredictor, predict, predict_view
from training.report import MetricsSummary, Report, ViewPredictions, summarize
from training.runs import RunConfig, TrainedRun


def export_bundle(
    data: Path,
    runs: Sequence[Path],
    out: Path,
    cache: Path | None = None,
    encoders: Path | None = None,
    name: str = "compact",
    version: str = "1",
    licence: str = "as its training data allow",
    whisper: str = "base",
    cross_validation: Path | None = None,
    accepted_risk: float = ACCEPTED_RISK,
    context_turns: int = 0,
) -> None:
    """Calibrate on the validation splits, measure the validation and test splits, and write the bundle.

    Args:
        data: The folder with the corpora.
        runs: Folders written by `train`: one run whose encoders trained too, or several runs with different seeds,
            which are averaged.
        out: The folder of the bundle.
        cache: A folder written by `cache_features`, for runs that were trained on one.
        encoders: The encoders that made the cached features: a folder written by `build_encoders`, or by `train`
            inside a run's folder.
        name: The name of the bundle.
        version: The version of the bundle.
        licence: The licence of the bundle, as the manifest states it.
        whisper: faster-whisper's name of the model that transcribes, such as large-v3-turbo.
        cross_validation: A `metrics.json` written by `evaluate` with `folds`, whose metrics go into the manifest.
        accepted_risk: The largest share of wrong answers; Tenor abstains to keep it. See `abstention_threshold`.
        context_turns: How many turns before a turn are read as its context when the bundle is served. Leave it at 0
            unless you have measured that context leaves clear turns right.

    Raises:
        ValueError: the runs do not make a bundle: one lacks a modality, several have encoders of their own, or the text
            encoder reads more preceding turns than serving gives it.
    """
    trained = [TrainedRun.load(run) for run in runs]
    config = trained[0].config
    encoders = _encoder_folder(config, runs, encoders)
    components = {kind: _encoder(kind, config, encoders, out) for kind in ("text", "speech")}
    utterances = config.utterances(data)
    held_out = {split: [u for u in utterances if u.split is split] for split in (Split.validation, Split.test)}
    ensembles = {split: [UtterancePredictor(run, part, cache) for run in trained] for split, part in held_out.items()}
    folds = {} if cross_validation is None else Report.model_validate_json(cross_validation.read_text()).views
    calibration = calibrate(predictions_by_modalities(ensembles[Split.validation]), accepted_risk)
    bundle = ModelBundle(
        name=name,
        version=version,
        label_space=config.labels.space,
        asr=transcriber_component(whisper),
        text_encoder=components["text"],
        speech_encoder=components["speech"],
        fusion=_fusion(config, runs, out, licence),
        context_turns=context_turns,
        calibration=calibration,
        metrics={
            **{split.value: measure(ensembles[split], calibration) for split, part in held_out.items() if part},
            "cross_validation": {name: _summary(result) for name, result in folds.items()},
        },
        training_data=[{"name": corpus, "licence": corpus_named(corpus).licence} for corpus in config.corpora],
        licence=licence,
    )
    write_manifest(out, bundle)


def predictions_by_modalities(
    ensemble: Ensemble,
) -> dict[Modalities, tuple[NDArray[np.integer], NDArray[np.floating]]]:
    """Returns the true labels and the logits of all views that give both modalities, text alone and audio alone."""
    kinds: dict[Modalities, tuple[bool, bool]] = {"both": (True, True), "text": (True, False), "audio": (False, True)}
    found: dict[Modalities, tuple[NDArray[np.integer], NDArray[np.floating]]] = {}
    known = views(ensemble[0].utterances).values()
    for kind, modalities in kinds.items():
        parts = [
            predict(ensemble, view, turns)[:2]
            for view in known
            if (view.text, view.audio) == modalities
            for turns in (EARLIER_TURNS if view.audio and ensemble[0].uses_baseline else (0,))
        ]
        labels = np.array([u.label for part, _ in parts for u in part])
        if labels.size:
            found[kind] = labels, np.concatenate([logits for _, logits in parts])
    return found


def measure(ensemble: Ensemble, calibration: Calibration) -> dict[str, dict[str, Any]]:
    """Returns the metrics of every view, calibrated as in service.

    `answered` is the share of utterances for which Tenor does not abstain, `answered_accuracy` the share of those that
    are right; the other metrics count all utterances.
    """
    measured: dict[str, dict[str, Any]] = {}
    for name, view in views(ensemble[0].utterances).items():
        temperature = calibration.temperature_of(text=view.text, audio=view.audio)
        for turns in EARLIER_TURNS if view.audio and ensemble[0].uses_baseline else (None,):
            if found := predict_view(name, view, [ensemble], earlier_turns=turns, temperature=temperature):
                measured[found.label] = _summary(summarize(found)) | _answered(found, calibration.abstain_below)
    return measured


def _encoder_folder(config: RunConfig, runs: Sequence[Path], encoders: Path | None) -> Path:
    if config.model.trains_encoders:
        if len(runs) > 1:
            raise ValueError("each of these runs has encoders of its own: give one run")
        return runs[0] / run_folder.ENCODERS
    if encoders is None:
        raise ValueError("these runs were trained on cached features: give the encoders that made them")
    return encoders


def _fusion(config: RunConfig, folders: Sequence[Path], out: Path, licence: str) -> Component:
    files = [f"fusion-{number}.safetensors" for number in range(1, len(folders) + 1)]
    for folder, name in zip(folders, files, strict=True):
        shutil.copyfile(folder / run_folder.FUSION, out / name)
    return Component(
        kind=config.model.fusion.kind,
        source="trained by Tenor's recipes on the corpora below",
        licence=licence,
        files=_digests(out, *files),
        options=config.model.fusion.model_dump(),
    )


def _encoder(kind: Literal["text", "speech"], config: RunConfig, encoders: Path, out: Path) -> Component:
    """Returns one of the two encoders, after its files were copied: a compact one, or a transformers checkpoint."""
    out.mkdir(parents=True, exist_ok=True)
    model = config.model
    branch = model.text if kind == "text" else model.audio
    if not model.trains_encoders or (branch is not None and (Path(branch.encoder.source) / ENCODERS_FILE).is_file()):
        return _compact_encoder(kind, encoders, out)
    if branch is None:
        raise ValueError(f"a bundle reads text and audio, and this run has no {kind} encoder")
    return _pretrained_encoder(kind, branch, encoders / ("text" if kind == "text" else "audio"), out)


def _compact_encoder(kind: Literal["text", "speech"], encoders: Path, out: Path) -> Component:
    description = json.loads((encoders / ENCODERS_FILE).read_text(encoding="utf-8"))
    options = description[f"{kind}_encoder"]
    check_context_turns(options.get("context_turns", 0))
    names = [f"{kind}_encoder.safetensors", *(["tokenizer.json"] if kind == "text" else [])]
    for name in names:
        shutil.copyfile(encoders / name, out / name)
    component, change = {
        "text": ("xlmr_vocabulary_bert", "its vocabulary pruned"),
        "speech": ("whisper_encoder", "its first layers"),
    }[kind]
    return Component(
        kind=component,
        source=f"{description['sources'][f'{kind}_encoder']}, {change}",
        licence="MIT",
        files=_digests(out, *names),
        options=options,
    )


def _pretrained_encoder(kind: str, branch: TextBranch | AudioBranch, folder: Path, out: Path) -> Component:
    """Returns a transformers checkpoint: copied if it was trained, otherwise named by its commit."""
    settings, revision = branch.encoder.model_dump(exclude={"source", "revision"}), branch.encoder.revision
    origin = branch.encoder.source if revision is None else f"{branch.encoder.source}@{revision}"
    if branch.freeze == "all" and branch.lora is None and revision is not None:
        return Component(kind=PRETRAINED_KIND, source=origin, licence="its own", options=settings)
    copied = out / f"{kind}_encoder"
    shutil.copytree(folder, copied, dirs_exist_ok=True)
    names = [path.relative_to(out).as_posix() for path in sorted(copied.iterdir())]
    return Component(
        kind=PRETRAINED_KIND,
        source=f"{origin}, fine-tuned",
        licence="its own",
        files=_digests(out, *names),
        options=settings,
    )


def _answered(found: ViewPredictions, threshold: float) -> dict[str, float]:
    answered = found.probabilities.max(axis=1) >= threshold
    right = found.probabilities.argmax(axis=1) == found.labels
    accuracy = float(right[answered].mean()) if answered.any() else 0.0
    return {"answered": round(float(answered.mean()), 4), "answered_accuracy": round(accuracy, 4)}


def _summary(found: MetricsSummary) -> dict[str, Any]:
    intervals = {name: found.intervals[name] for name in ("weighted_f1", "uar") if name in found.intervals}
    return {
        **{name: round(getattr(found.metrics, name), 4) for name in ("count", "accuracy", "weighted_f1", "uar", "ece")},
        "intervals": {name: [round(low, 4), round(high, 4)] for name, (low, high) in intervals.items()},
    }


def _digests(folder: Path, *names: str) -> dict[str, str]:
    return {name: sha256(folder / name) for name in names}
