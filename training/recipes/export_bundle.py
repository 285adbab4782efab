"""Put a bundle together: encoders, fusion, calibration, and a manifest that says what it can do."""

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
from training.branches import TextBranch, VoiceBranch
from training.calibration import ACCEPTED_RISK, calibrate
from training.data.corpus import Split, Utterance, views
from training.data.load import corpus_named
from training.recipes.evaluate import EARLIER_TURNS, Reader, Trained, predict, read
from training.recipes.train import Run
from training.report import Figures, Predictions, Report, summarize


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
) -> None:
    """Calibrate on the validation splits, measure, and write the bundle to `out`.

    Args:
        data: holds the corpora.
        runs: written by `train`: one whose encoders learned too, or several with different seeds, which are averaged.
        out: the bundle's folder.
        cache: written by `cache_features`, for runs that were trained on it.
        encoders: whose features these are: a folder written by `build_encoders` or, below a run, by `train`.
        name: the bundle's.
        version: the bundle's.
        licence: the bundle's, as the manifest states it.
        whisper: faster-whisper's name of the model that transcribes, such as large-v3-turbo.
        cross_validation: the `metrics.json` written by `evaluate` with `folds`; its figures go into the manifest.
        accepted_risk: Tenor abstains so that no larger share of its answers is wrong, see `abstention_threshold`.

    Raises:
        ValueError: the runs do not make a bundle: one lacks a modality, or several have encoders of their own.
    """
    models = [Trained.load(run) for run in runs]
    run = models[0].run
    if run.live:
        if len(runs) > 1:
            raise ValueError("each of these runs has encoders of its own: give one")
        encoders = runs[0] / "encoders"
    elif encoders is None:
        raise ValueError("these runs rest on cached features: give the encoders that made them")
    out.mkdir(parents=True, exist_ok=True)
    text, speech = (_encoder(kind, run, encoders, out) for kind in ("text", "speech"))
    utterances = run.utterances(data)
    held_out = {split: [u for u in utterances if u.split is split] for split in (Split.validation, Split.test)}
    readers = {split: [Reader(model, part, cache) for model in models] for split, part in held_out.items()}
    folds = {} if cross_validation is None else Report.model_validate_json(cross_validation.read_text()).views
    calibration = calibrate(readings(readers[Split.validation]), accepted_risk)
    bundle = ModelBundle(
        name=name,
        version=version,
        label_space=run.labels.space,
        asr=transcriber_component(whisper),
        text_encoder=text,
        speech_encoder=speech,
        fusion=_fusion(run, runs, out, licence),
        calibration=calibration,
        metrics={
            **{split.value: measure(readers[split], calibration) for split, part in held_out.items() if part},
            "cross_validation": {name: _summary(result) for name, result in folds.items()},
        },
        training_data=[{"name": corpus, "licence": corpus_named(corpus).licence} for corpus in run.corpora],
        licence=licence,
    )
    write_manifest(out, bundle)


def _fusion(run: Run, folders: Sequence[Path], out: Path, licence: str) -> Component:
    files = [f"fusion-{number}.safetensors" for number in range(1, len(folders) + 1)]
    for folder, name in zip(folders, files, strict=True):
        shutil.copyfile(folder / "fusion.safetensors", out / name)
    return Component(
        kind=run.fusion.kind,
        source="trained by Tenor's recipes on the corpora below",
        licence=licence,
        files=_digests(out, *files),
        options=run.fusion.model_dump(),
    )


def _encoder(kind: Literal["text", "speech"], run: Run, encoders: Path, out: Path) -> Component:
    """One of the two encoders: a small one of Tenor's own, or a checkpoint of transformers."""
    branch = run.text if kind == "text" else run.voice
    if not run.live or (branch is not None and (Path(branch.encoder.source) / ENCODERS_FILE).is_file()):
        return _own(kind, encoders, out)
    if branch is None:
        raise ValueError(f"a bundle reads words and voices, and this run has no {kind} branch")
    return _pretrained(kind, branch, encoders / ("text" if kind == "text" else "voice"), out)


def _own(kind: str, encoders: Path, out: Path) -> Component:
    options = json.loads((encoders / ENCODERS_FILE).read_text(encoding="utf-8"))
    names = [f"{kind}_encoder.safetensors", *(["tokenizer.json"] if kind == "text" else [])]
    for name in names:
        shutil.copyfile(encoders / name, out / name)
    made = {
        "text": ("xlmr_vocabulary_bert", "its vocabulary pruned"),
        "speech": ("whisper_encoder", "its first layers"),
    }
    component, how = made[kind]
    return Component(
        kind=component,
        source=f"{options['sources'][f'{kind}_encoder']}, {how}",
        licence="MIT",
        files=_digests(out, *names),
        options=options[f"{kind}_encoder"],
    )


def _pretrained(kind: str, branch: TextBranch | VoiceBranch, folder: Path, out: Path) -> Component:
    """A checkpoint of which nothing learned is only named, where it has a name that lasts."""
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
        temperature = calibration.temperature_of(text=text, audio=voice)
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
