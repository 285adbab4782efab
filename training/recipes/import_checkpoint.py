"""From a published audio classifier to a bundle that serves it."""

from math import inf
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCard
from safetensors.torch import save_file
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
from training.checkpoints import checkpoint_folder, read_weights, with_weights

WEIGHTS = "classifier.safetensors"
OWN_HEADS = ("classifier.output.", "classifier.out_proj.")
"""What heads that are not transformers' own call their last layer; the one before it is `classifier.dense`."""


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
        source: a folder, or a repository of the hub.
        out: the bundle's folder.
        revision: the repository's commit.
        categories: what each of the checkpoint's labels counts as; they count as themselves if not given.
        extractor: a folder, or REPOSITORY@COMMIT, with the `preprocessor_config.json` that the source lacks.
        head_activation: the activation between the layers of a head with `classifier.dense`. No checkpoint says so;
            Wav2Vec2's widespread classification head has a hyperbolic tangent there. Other heads have nothing.
        window_s: the longest sound that is heard at once; less where the feature extractor takes no more.
        name: the bundle's; the source's own if not given.
        licence: the checkpoint's; as its model card states it if not given.
    """
    pinned = f"{source}@{revision}" if revision else source
    folder = checkpoint_folder(pinned)
    model, own_head = classifier_of(folder)
    own_name = name or Path(source).name
    outputs = mapped(labels_of(model.config), categories)
    used = extractor_of(checkpoint_folder(extractor) if extractor else folder)
    options = ClassifierConfig(
        outputs=outputs, window_s=min(window_s, hears(used)), head_activation=head_activation if own_head else "none"
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
    """The checkpoint's model with all its weights, and whether it was trained with a head that is not transformers'.

    Raises:
        BundleError: it is no audio classifier, or some of its weights are not to be had or have no place.
    """
    config = config_of(folder)
    if type(config) not in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING:
        raise BundleError(f"{folder} holds no audio classifier that transformers knows, but a {config.model_type!r}")
    if config.problem_type not in (None, "single_label_classification"):
        raise BundleError(f"{folder} is for {config.problem_type}: only one label a clip can be served")
    weights = read_weights(folder)
    own_head = any(name.startswith(OWN_HEADS) for name in weights)
    if own_head:
        weights = _with_transformers_head(weights, config)
    model: Any = MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING[type(config)]
    return with_weights(model, config, weights), own_head


def config_of(folder: Path) -> PreTrainedConfig:
    """What `config.json` says, with no code of the checkpoint's own.

    Raises:
        BundleError: there is none, or its model is not known.
    """
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder} has no config.json of a model that transformers knows: {error}") from error


def extractor_of(folder: Path) -> FeatureExtractionMixin:
    """The feature extractor, with no code of the checkpoint's own.

    Raises:
        BundleError: there is none, or it does not take sound at 16 kHz.
    """
    try:
        extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder} has no preprocessor_config.json: name what has it with --extractor") from error
    if extractor.sampling_rate != SAMPLE_RATE:
        raise BundleError(f"{folder} takes sound at {extractor.sampling_rate} Hz, not at {SAMPLE_RATE}")
    return extractor


def hears(extractor: FeatureExtractionMixin) -> float:
    """The longest sound, in seconds, of which an extractor leaves nothing out."""
    if isinstance(extractor, ASTFeatureExtractor):
        return extractor.max_length / 100  # frames of 10 ms
    return float(getattr(extractor, "chunk_length", inf))  # Whisper's


def labels_of(config: PreTrainedConfig) -> list[str]:
    """The checkpoint's own names of its outputs, in order."""
    names: dict[Any, str] = config.id2label or {}
    return [names[output] for output in sorted(names)]


def mapped(labels: list[str], categories: dict[str, str] | None) -> tuple[str, ...]:
    """What each label counts as.

    Raises:
        BundleError: the mapping leaves out a label, or has one that the checkpoint does not know.
    """
    if categories is None:
        return tuple(labels)
    if categories.keys() != set(labels):
        differing = ", ".join(sorted(categories.keys() ^ set(labels)))
        raise BundleError(f"the mapping must have exactly the labels {', '.join(labels)}; see to {differing}")
    return tuple(categories[label] for label in labels)


def label_space(name: str, outputs: tuple[str, ...]) -> LabelSpace:
    """Ekman's seven where all outputs are of them, else one of their own in the order of the outputs."""
    if set(outputs) <= set(EKMAN7.categories):
        return EKMAN7.model_copy(update={"dimensions": ()})
    return LabelSpace(name=name, categories=tuple(dict.fromkeys(outputs)))


def stated_licence(folder: Path) -> str:
    """The licence of the model card.

    Raises:
        BundleError: it has none.
    """
    card = folder / "README.md"
    licence = ModelCard.load(card).data.get("license") if card.is_file() else None
    if not licence:
        raise BundleError(f"{card} states no licence: say with --licence what it is")
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
    """Write a bundle whose voice is read by `network`, with `classifier` told of its files."""
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
    """The weights by transformers' names; the first layer of a head of one's own may be of another width."""
    if (pooling := getattr(config, "pooling_mode", "mean")) != "mean":
        raise BundleError(f"the checkpoint pools by {pooling!r}: only 'mean' is known")
    last = next(prefix for prefix in OWN_HEADS if any(name.startswith(prefix) for name in weights))
    renamed = {"classifier.dense.": "projector.", last: "classifier."}
    places = {f"{own}{kind}": f"{place}{kind}" for own, place in renamed.items() for kind in ("weight", "bias")}
    if missing := [name for name in places if name not in weights]:
        raise BundleError(f"the checkpoint lacks weights of its head: {', '.join(missing)}")
    config.classifier_proj_size = len(weights["classifier.dense.weight"])
    return {places.get(name, name): tensor for name, tensor in weights.items()}
