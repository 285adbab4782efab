"""Measure a fusion on held-out utterances, by corpus and by the modalities it is given."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from shared.modeling.fusion import CrossAttentionFusion, FusionEnsemble
from training.data.corpus import Split, Utterance, views
from training.data.dataset import EvaluationSet, Features, collate
from training.data.load import load
from training.metrics import Metrics, metrics
from training.recipes.train import Run, fold_of

Fusion = CrossAttentionFusion | FusionEnsemble


def evaluate(
    data: Path,
    cache: Path,
    runs: Sequence[Path],
    out: Path,
    split: Split = Split.validation,
    folds: int | None = None,
) -> None:
    """Write the metrics of every view as JSON.

    Args:
        data: holds the corpora.
        cache: written by `cache_features`.
        runs: folders written by `train`: they are averaged, or with `folds` one a fold, in order.
        out: the JSON file.
        split: which utterances, unless there are folds.
        folds: cross-validation: every spoken utterance is read by the run that did not train on its speaker.
    """
    loaded = [load_run(run) for run in runs]
    models = [model for _, model in loaded]
    ensemble = FusionEnsemble(models)
    corpora = loaded[0][0].corpora
    utterances = load(data, corpora)
    features = Features(cache, corpora, ["original"])
    results: dict[str, Metrics] = {}
    for name, (corpus, text, voice) in views(utterances).items():
        chosen = [u for u in utterances if u.corpus == corpus]
        if folds is None:
            parts: list[tuple[Fusion, list[Utterance]]] = [(ensemble, [u for u in chosen if u.split is split])]
        elif voice:
            parts = [
                (model, [u for u in chosen if u.split is not Split.test and fold_of(u, folds) == i])
                for i, model in enumerate(models)
            ]
        else:
            continue
        labels: list[int] = []
        probabilities = []
        for model, part in parts:
            found, logits, _ = predict(model, features, part, text=text, voice=voice)
            labels += [u.label for u in found]
            probabilities.append(softmax(logits))
        if labels:
            results[name] = metrics(labels, np.concatenate(probabilities))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({name: result.model_dump() for name, result in results.items()}, indent=1))
    for name, result in results.items():
        print(f"{name:18} n={result.count:5}  WF1 {result.weighted_f1:.3f}  UAR {result.uar:.3f}  ECE {result.ece:.3f}")


def load_run(folder: Path) -> tuple[Run, CrossAttentionFusion]:
    """What `train` wrote."""
    run = Run.model_validate_json((folder / "run.json").read_text())
    model = CrossAttentionFusion(run.fusion)
    model.load_state_dict(load_file(folder / "fusion.safetensors"))
    return run, model.eval()


@torch.inference_mode()
def predict(
    model: Fusion, features: Features, utterances: Sequence[Utterance], *, text: bool, voice: bool
) -> tuple[list[Utterance], NDArray[np.floating], NDArray[np.floating]]:
    """The utterances that have the modalities, their logits, shape [count, categories], and their valence."""
    examples = EvaluationSet(features, utterances, text=text, voice=voice)
    found: list[Utterance] = []
    logits, valence = [np.zeros((0, model.config.categories))], [np.zeros(0)]
    for start in range(0, len(examples), 128):
        batch = collate([examples[i] for i in range(start, min(start + 128, len(examples)))], model.config)
        fused = model(batch.text, batch.voice)
        found += batch.utterances
        logits.append(fused.logits.numpy())
        valence.append(fused.valence.numpy())
    return found, np.concatenate(logits), np.concatenate(valence)


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.floating]:
    """Probabilities, shape [count, categories]."""
    scaled = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    return scaled / scaled.sum(axis=1, keepdims=True)
