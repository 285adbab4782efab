"""The recipe `import_checkpoint`: makes a bundle of a published audio classifier."""

# transformers has no complete types.
# pyright: reportUnknownMemberType=false

from math import inf
from pathlib import Path
from typing import Any, Literal, cast

from huggingface_hub import ModelCard
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType] - its PathLike is bare
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    ASTFeatureExtractor,
    AutoConfig,
    AutoFeatureExtractor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.feature_extraction_utils import FeatureExtractionMixin

from shared.audio.decoder import SAMPLE_RATE
from shared.domain.bundle import Calibration, Component, ModelBundle
from shared.domain.emotion import EKMAN7, LabelSpace
from shared.errors import BundleError
from shared.modeling.audio_classifiers import ClassifierConfig, SequenceClassifier
from shared.modeling.loading import CLASSIFIER_FILES, sha256, write_manifest
from shared.modeling.whisper_weights import transcriber_component
from training.published_checkpoints import checkpoint_folder, read_weights, with_weights

WEIGHTS = "classifier.safetensors"
OWN_HEADS = ("classifier.output.", "classifier.out_proj.")
"""Names of the last layer in heads that are not those of transformers; the layer before it is `classifier.dense`."""


def import_checkpoint(
    source: str,
    out: Path,
    revision: str | None = None,
    categories: dict[str, str] | None = None,
    extractor: str | None = None,
    head_activation: Literal["none", "tanh"] = "tanh",
    window_s: float = 30.0,
    name: str | None = None,
    licence: str | None = None,
) -> None:
    """Write a bundle of a transformers checkpoint for audio classification.

    Args:
        source: A folder, or a repository of the hub.
        out: The folder of the bundle.
        revision: The repository's commit.
        categories: The category of each of the checkpoint's labels; by default each label is a category.
        extractor: A folder, or REPOSITORY@COMMIT, with the `preprocessor_config.json` that the source lacks.
        between: The function between the layers of a head with `classifier.dense`, which no checkpoint states. The
            common head of Wav2Vec2 has a hyperbolic tangent. Other heads have nothing there.
        window_s: The longest audio that is encoded at once, in seconds; the feature extractor may allow less.
        name: The name of the bundle; by default that of the source.
        licence: The licence of the checkpoint; by default as its model card states it.

    Raises:
        BundleError: the checkpoint is not an audio classifier with one label per clip, or a part of it is missing.
        WeightsMissing: the checkpoint cannot be downloaded.
    """
    pinned = f"{source}@{revision}" if revision else source
    folder = checkpoint_folder(pinned)
    model, own_head = classifier_of(folder)
    own_name = name or Path(source).name
    outputs = categories_of(labels_of(model.config), categories)
    used = extractor_of(checkpoint_folder(extractor) if extractor else folder)
    options = ClassifierConfig(
        outputs=outputs,
        window_s=min(window_s, longest_input_s(used)),
        head_activation=head_activation if own_head else "none",
    )
    write_bundle(
        out,
        own_name,
        label_space(own_name, outputs),
        Component(
            kind="audio_classification",
            source=pinned,
            licence=licence or stated_licence(folder),
            options=options.model_dump(mode="json"),
        ),
        SequenceClassifier(model, options.head_activation),
        model.config,
        used,
    )


def classifier_of(folder: Path) -> tuple[PreTrainedModel, bool]:
    """Returns the checkpoint's model with all its weights, and whether its head is not that of transformers.

    Raises:
        BundleError: it is not an audio classifier, or a weight is missing or does not belong to the model.
    """
    config = config_of(folder)
    if type(config) not in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING:
        raise BundleError(f"{folder} is not an audio classifier that transformers knows, but a {config.model_type!r}")
    if config.problem_type not in (None, "single_label_classification"):
        raise BundleError(
            f"{folder} is a model for {config.problem_type}: only models with one label per clip can be served"
        )
    weights = read_weights(folder)
    own_head = any(name.startswith(OWN_HEADS) for name in weights)
    if own_head:
        weights = _with_transformers_head(weights, config)
    model: Any = MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING[type(config)]
    return with_weights(model, config, weights), own_head


def config_of(folder: Path) -> PreTrainedConfig:
    """Returns the content of `config.json`; code in the checkpoint is not run.

    Raises:
        BundleError: there is no such file, or its model is unknown.
    """
    try:
        return cast(
            "PreTrainedConfig", AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        )
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder} has no config.json of a model that transformers knows: {error}") from error


def extractor_of(folder: Path) -> FeatureExtractionMixin:
    """Returns the feature extractor; code in the checkpoint is not run.

    Raises:
        BundleError: there is none, or it does not take audio at 16 kHz.
    """
    try:
        kind: Any = AutoFeatureExtractor
        extractor = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{folder} has no preprocessor_config.json: name a folder or repository that has it with --extractor"
        ) from error
    if extractor.sampling_rate != SAMPLE_RATE:
        raise BundleError(f"{folder} takes audio at {extractor.sampling_rate} Hz, not at {SAMPLE_RATE}")
    return extractor


def longest_input_s(extractor: FeatureExtractionMixin) -> float:
    """Returns the longest audio, in seconds, that a feature extractor does not truncate."""
    if isinstance(extractor, ASTFeatureExtractor):
        return extractor.max_length / 100  # frames of 10 ms
    return float(getattr(extractor, "chunk_length", inf))  # Whisper's


def labels_of(config: PreTrainedConfig) -> list[str]:
    """Returns the checkpoint's names of its outputs, in order."""
    names: dict[Any, str] = config.id2label or {}
    return [names[output] for output in sorted(names)]


def categories_of(labels: list[str], categories: dict[str, str] | None) -> tuple[str, ...]:
    """Returns the category of each label.

    Raises:
        BundleError: the mapping lacks a label, or has one that the checkpoint does not have.
    """
    if categories is None:
        return tuple(labels)
    if categories.keys() != set(labels):
        differing = ", ".join(sorted(categories.keys() ^ set(labels)))
        raise BundleError(f"the mapping must have exactly the labels {', '.join(labels)}; check {differing}")
    return tuple(categories[label] for label in labels)


def label_space(name: str, outputs: tuple[str, ...]) -> LabelSpace:
    """Returns `ekman7` if it has all outputs, otherwise a label space of the outputs in their order."""
    if set(outputs) <= set(EKMAN7.categories):
        return EKMAN7.model_copy(update={"dimensions": ()})
    return LabelSpace(name=name, categories=tuple(dict.fromkeys(outputs)))


def stated_licence(folder: Path) -> str:
    """Returns the licence that the model card states.

    Raises:
        BundleError: it states none.
    """
    card = folder / "README.md"
    licence = ModelCard.load(card).data.get("license") if card.is_file() else None
    if not licence:
        raise BundleError(f"{card} states no licence: give it with --licence")
    return str(licence)


def write_bundle(
    out: Path,
    name: str,
    space: LabelSpace,
    classifier: Component,
    network: nn.Module,
    config: PreTrainedConfig,
    extractor: FeatureExtractionMixin,
) -> None:
    """Write a bundle that classifies audio with `network`; the digests of its files are added to `classifier`."""
    out.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    save_file(weights, out / WEIGHTS)
    config.save_pretrained(out)
    extractor.save_pretrained(out)
    digests = {file: sha256(out / file) for file in (*CLASSIFIER_FILES, WEIGHTS)}
    bundle = ModelBundle(
        name=name,
        version="1",
        label_space=space,
        asr=transcriber_component(),
        classifier=classifier.model_copy(update={"files": digests}),
        calibration=Calibration(),
        metrics={},
        training_data=[],
        licence=classifier.licence,
    )
    write_manifest(out, bundle)


def _with_transformers_head(weights: dict[str, Tensor], config: PreTrainedConfig) -> dict[str, Tensor]:
    """Returns the weights under transformers' names, and sets the width of the head's first layer in `config`."""
    if (pooling := getattr(config, "pooling_mode", "mean")) != "mean":
        raise BundleError(f"the checkpoint pools by {pooling!r}: only 'mean' is supported")
    last = next(prefix for prefix in OWN_HEADS if any(name.startswith(prefix) for name in weights))
    renamed = {"classifier.dense.": "projector.", last: "classifier."}
    places = {f"{own}{kind}": f"{place}{kind}" for own, place in renamed.items() for kind in ("weight", "bias")}
    if missing := [name for name in places if name not in weights]:
        raise BundleError(f"the checkpoint lacks weights of its head: {', '.join(missing)}")
    config.classifier_proj_size = len(weights["classifier.dense.weight"])
    return {places.get(name, name): tensor for name, tensor in weights.items()}
