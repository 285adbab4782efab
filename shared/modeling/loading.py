"""Loading of bundles: manifests, checksums, and models with their weights, from safetensors and never from pickles."""

# transformers and PyYAML have no complete types.
# pyright: reportUnknownMemberType=false

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import yaml
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType] - its PathLike is bare
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    FeatureExtractionMixin,
    PreTrainedConfig,
    PreTrainedModel,
)

from shared.domain.bundle import Component, ModelBundle
from shared.domain.emotion import LabelSpace
from shared.domain.turn import MAX_CONTEXT_TURNS
from shared.errors import BundleError
from shared.modeling.audio_classifiers import (
    AudioClassifier,
    ClassifierConfig,
    PatchClassifierConfig,
    PatchTransformer,
    PooledClassifier,
    SequenceClassifier,
)
from shared.modeling.fusion import FusionConfig, FusionEnsemble, build_fusion
from shared.modeling.pretrained_encoders import (
    PretrainedSpeechConfig,
    PretrainedSpeechEncoder,
    PretrainedTextConfig,
    PretrainedTextEncoder,
)
from shared.modeling.quantization import dequantize
from shared.modeling.speech_encoders import SpeechEncoder, SpeechEncoderConfig
from shared.modeling.text_encoders import TextEncoder, TextEncoderConfig

SHIPPED_BUNDLES = Path(__file__).parents[1] / "bundles"
MANIFEST = "bundle.yaml"
ENCODERS_FILE = "encoders.json"
"""Describes the encoders in a folder without a manifest, as `training build_encoders` writes it."""
CLASSIFIER_FILES = ("config.json", "preprocessor_config.json")
"""The files in which transformers stores the shapes of a network and the settings of its feature extractor."""

PRETRAINED_KIND = "transformers"
"""The kind of an encoder component that is a checkpoint of transformers; its options are those of the config class."""

AnyTextEncoder = TextEncoder | PretrainedTextEncoder
AnySpeechEncoder = SpeechEncoder | PretrainedSpeechEncoder
Config = TypeVar("Config")
Pretrained = TypeVar("Pretrained", PretrainedTextConfig, PretrainedSpeechConfig)
Module = TypeVar("Module", bound=nn.Module)


def bundle_folder(name: str) -> Path:
    """Returns the folder of a bundle.

    Args:
        name: the name of a shipped bundle, or the path of a folder.

    Raises:
        BundleError: there is no such bundle.
    """
    for folder in (SHIPPED_BUNDLES / name, Path(name)):
        if (folder / MANIFEST).is_file():
            return folder
    shipped = ", ".join(sorted(path.parent.name for path in SHIPPED_BUNDLES.glob(f"*/{MANIFEST}")))
    raise BundleError(f"there is no bundle {name!r}: use the path of a folder with a {MANIFEST}, or one of {shipped}")


def read_manifest(folder: Path) -> ModelBundle:
    """Returns the manifest of the bundle in `folder`. `verify_files` checks the files that it names.

    Raises:
        BundleError: there is no manifest, or it is not valid.
    """
    path = folder / MANIFEST
    try:
        return ModelBundle.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: a bundle is a folder with a manifest of that name") from None
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not a valid manifest: {error}") from error


def write_manifest(folder: Path, bundle: ModelBundle) -> None:
    """Write the manifest of a bundle to its folder."""
    manifest = {name: value for name, value in bundle.model_dump(mode="json").items() if value is not None}
    (folder / MANIFEST).write_text(yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True), encoding="utf-8")


def verify_files(folder: Path, bundle: ModelBundle) -> None:
    """Compare every file that the manifest names with its sha256.

    Raises:
        BundleError: a file is missing or differs.
    """
    for component in bundle.components:
        for name, expected in component.files.items():
            path = folder / name
            if not path.is_file():
                raise BundleError(f"{path} is missing: the bundle {bundle.name!r} is incomplete")
            if sha256(path) != expected:
                raise BundleError(f"{path} differs from the manifest: its sha256 is {sha256(path)}, not {expected}")


def sha256(path: Path) -> str:
    """Returns the SHA-256 digest of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_text_encoder(folder: Path, component: Component) -> AnyTextEncoder:
    """Returns the text encoder of a bundle, in evaluation mode.

    Args:
        folder: the folder of the bundle.
        component: of kind `xlmr_vocabulary_bert`, or of kind `transformers` with one of the `TEXT_ARCHITECTURES`.

    Raises:
        BundleError: the component cannot be loaded, or was trained with more than `MAX_CONTEXT_TURNS` context turns.
        WeightsMissing: the weights of a published checkpoint are neither here nor on the hub.
    """
    if component.kind == PRETRAINED_KIND:
        checkpoint = _checkpoint(folder, component, PretrainedTextConfig)
        _check_context_turns(checkpoint.context_turns)
        return PretrainedTextEncoder.load(checkpoint).requires_grad_(False)
    config = _options(component, "xlmr_vocabulary_bert", TextEncoderConfig.model_validate)
    _check_context_turns(config.context_turns)
    return _text_encoder(config, folder / _file(component, ".json"), folder / _file(component, ".safetensors"))


def load_speech_encoder(folder: Path, component: Component) -> AnySpeechEncoder:
    """Returns the speech encoder of a bundle, in evaluation mode.

    Args:
        folder: the folder of the bundle.
        component: of kind `whisper_encoder`, or of kind `transformers` with one of the `SPEECH_ARCHITECTURES`.

    Raises:
        BundleError: the component cannot be loaded.
        WeightsMissing: the weights of a published checkpoint are neither here nor on the hub.
    """
    if component.kind == PRETRAINED_KIND:
        checkpoint = _checkpoint(folder, component, PretrainedSpeechConfig)
        return PretrainedSpeechEncoder.load(checkpoint).requires_grad_(False)
    config = _options(component, "whisper_encoder", SpeechEncoderConfig.model_validate)
    return _with_weights(SpeechEncoder(config), folder / _file(component, ".safetensors"))


def load_encoders(folder: Path) -> tuple[TextEncoder, SpeechEncoder]:
    """Returns the encoders in a folder that has their weights and `encoders.json`, but no manifest."""
    options = json.loads((folder / ENCODERS_FILE).read_text(encoding="utf-8"))
    text = TextEncoderConfig.model_validate(options["text_encoder"])
    speech = SpeechEncoder(SpeechEncoderConfig.model_validate(options["speech_encoder"]))
    return (
        _text_encoder(text, folder / "tokenizer.json", folder / "text_encoder.safetensors"),
        _with_weights(speech, folder / "speech_encoder.safetensors"),
    )


def load_fusion(folder: Path, component: Component) -> FusionEnsemble:
    """Returns the fusion of a bundle: an ensemble with one member for each file of the component.

    Raises:
        BundleError: the component cannot be loaded.
    """
    config = _options(component, str(component.options.get("kind", "cross_attention")), FusionConfig.model_validate)
    if not component.files:
        raise BundleError(f"a component of kind {component.kind!r} needs a .safetensors file")
    return FusionEnsemble([_with_weights(build_fusion(config), folder / name) for name in component.files])


def _checkpoint(folder: Path, component: Component, kind: type[Pretrained]) -> Pretrained:
    """Returns the config of a component's checkpoint, whose source is the folder of its files, or else the hub."""
    repository, _, revision = component.source.partition("@")
    place = {"source": repository, "revision": revision or None}
    if component.files:
        parents = {(folder / name).parent for name in component.files}
        if len(parents) != 1:
            raise BundleError(f"the files of a component of kind {component.kind!r} must be in one folder")
        place = {"source": str(parents.pop()), "revision": None}
    return _options(component, PRETRAINED_KIND, lambda options: kind.model_validate({**options, **place}))  # pyright: ignore[reportGeneralTypeIssues]


def _text_encoder(config: TextEncoderConfig, tokenizer: Path, weights: Path) -> TextEncoder:
    return _with_weights(TextEncoder(config, Tokenizer.from_file(str(tokenizer))), weights)


def load_classifier(folder: Path, component: Component, label_space: LabelSpace) -> AudioClassifier:
    """Returns the audio classifier of a bundle.

    Args:
        folder: the folder of the bundle. It holds transformers' own two `CLASSIFIER_FILES` beside the weights.
        component: of kind `audio_classification` or `patch_transformer`.
        label_space: the categories that the classifier's outputs are mapped to.

    Raises:
        BundleError: the component cannot be loaded.
    """
    for name in CLASSIFIER_FILES:
        if name not in component.files:
            raise BundleError(f"a component of kind {component.kind!r} needs the file {name}")
    try:
        shape = cast(
            "PreTrainedConfig", AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        )
        extractor = cast(
            "FeatureExtractionMixin",
            AutoFeatureExtractor.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
        )
        config, network = _network(component, shape)
        outputs = [label_space.index(category) for category in config.outputs]
    except (OSError, ValueError) as error:
        raise BundleError(f"the classifier in {folder} cannot be loaded: {error}") from error
    network = _with_weights(network, folder / _file(component, ".safetensors"))
    return AudioClassifier(network, extractor, outputs, len(label_space.categories), config.window_s)


def _network(component: Component, shape: PreTrainedConfig) -> tuple[ClassifierConfig, nn.Module]:
    if component.kind == "patch_transformer":
        config = _options(component, "patch_transformer", PatchClassifierConfig.model_validate)
        model = cast("PreTrainedModel", AutoModel.from_config(shape))
        return config, PooledClassifier(model, PatchTransformer(config.network))
    config = _options(component, "audio_classification", ClassifierConfig.model_validate)
    model = cast("PreTrainedModel", AutoModelForAudioClassification.from_config(shape))
    return config, SequenceClassifier(model, config.head_activation)


def _options(component: Component, kind: str, validate: Callable[[object], Config]) -> Config:
    if component.kind != kind:
        raise BundleError(
            f"this version of Tenor cannot load a component of kind {component.kind!r} here, but one of kind {kind!r}"
        )
    try:
        return validate(component.options)
    except ValidationError as error:
        raise BundleError(f"the options of {kind!r} are not valid: {error}") from error


def _check_context_turns(context_turns: int) -> None:
    # With fewer turns than in training, the predictions would silently differ from those that were evaluated.
    if context_turns > MAX_CONTEXT_TURNS:
        raise BundleError(
            f"the bundle's text encoder was trained with context_turns {context_turns}, but Tenor passes at most "
            f"{MAX_CONTEXT_TURNS} turns of context to it"
        )


def _file(component: Component, ending: str) -> str:
    names = [name for name in component.files if name.endswith(ending)]
    if len(names) != 1:
        raise BundleError(f"a component of kind {component.kind!r} needs exactly one {ending} file, not {names}")
    return names[0]


def _with_weights(module: Module, path: Path) -> Module:
    try:
        module.load_state_dict(dequantize(load_file(path)))
    except (KeyError, RuntimeError, OSError, SafetensorError) as error:
        raise BundleError(f"{path} does not fit the options in its manifest: {error}") from error
    return module.float().eval().requires_grad_(False)
