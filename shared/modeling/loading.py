"""Bundles from disk: manifests, checksums, and weights from safetensors, never from pickles."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, PreTrainedConfig

from shared.domain.bundle import Component, ModelBundle
from shared.domain.emotion import LabelSpace
from shared.errors import BundleError
from shared.modeling.audio_classifiers import (
    AudioClassifier,
    ClassifierConfig,
    PatchClassifierConfig,
    PatchTransformer,
    PooledClassifier,
    SequenceClassifier,
)
from shared.modeling.fusion import FusionConfig, FusionEnsemble, fusion_of
from shared.modeling.pretrained_encoders import (
    PretrainedSpeechConfig,
    PretrainedSpeechEncoder,
    PretrainedTextConfig,
    PretrainedTextEncoder,
)
from shared.modeling.quantization import dequantized
from shared.modeling.speech_encoders import SpeechEncoder, SpeechEncoderConfig
from shared.modeling.text_encoders import TextEncoder, TextEncoderConfig

SHIPPED = Path(__file__).parents[1] / "bundles"
MANIFEST = "bundle.yaml"
ENCODERS = "encoders.json"
"""What describes a folder of encoders that belong to no bundle yet."""
CLASSIFIER_FILES = ("config.json", "preprocessor_config.json")
"""How transformers names a network's shape and the settings of its feature extractor."""

PRETRAINED = "transformers"
"""The kind of an encoder that is a checkpoint of transformers, with the settings of its class as options."""

AnyTextEncoder = TextEncoder | PretrainedTextEncoder
AnySpeechEncoder = SpeechEncoder | PretrainedSpeechEncoder
Config = TypeVar("Config")
Pretrained = TypeVar("Pretrained", PretrainedTextConfig, PretrainedSpeechConfig)
Module = TypeVar("Module", bound=nn.Module)


def bundle_folder(name: str) -> Path:
    """The folder of a shipped bundle by its name, or the folder that `name` is.

    Raises:
        BundleError: neither is there.
    """
    for folder in (SHIPPED / name, Path(name)):
        if (folder / MANIFEST).is_file():
            return folder
    shipped = ", ".join(sorted(path.parent.name for path in SHIPPED.glob(f"*/{MANIFEST}")))
    raise BundleError(f"there is no bundle {name!r}: use the path of a folder with a {MANIFEST}, or one of {shipped}")


def read_manifest(folder: Path) -> ModelBundle:
    """The manifest of the bundle in `folder`; the files it names are not looked at.

    Raises:
        BundleError: there is none, or it is not valid.
    """
    path = folder / MANIFEST
    try:
        return ModelBundle.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: a bundle is a folder with a manifest of that name") from None
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not a valid manifest: {error}") from error


def write_manifest(folder: Path, bundle: ModelBundle) -> None:
    """What `read_manifest` reads."""
    manifest = {name: value for name, value in bundle.model_dump(mode="json").items() if value is not None}
    (folder / MANIFEST).write_text(yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True), encoding="utf-8")


def verify_files(folder: Path, bundle: ModelBundle) -> None:
    """Check every file that the manifest names against its sha256.

    Raises:
        BundleError: a file is missing or differs.
    """
    for component in bundle.components:
        for name, expected in component.files.items():
            path = folder / name
            if not path.is_file():
                raise BundleError(f"{path} is missing: the bundle {bundle.name!r} is incomplete")
            if sha256(path) != expected:
                raise BundleError(f"{path} is not the file that the manifest means: its sha256 is {sha256(path)}")


def sha256(path: Path) -> str:
    """A file's digest, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_text_encoder(folder: Path, component: Component) -> AnyTextEncoder:
    """A component of kind `xlmr_vocabulary_bert`, or of kind `transformers`: one of the `TEXT_ARCHITECTURES`."""
    if component.kind == PRETRAINED:
        return PretrainedTextEncoder.load(_checkpoint(folder, component, PretrainedTextConfig)).requires_grad_(False)
    config = _options(component, "xlmr_vocabulary_bert", TextEncoderConfig.model_validate)
    return _text_encoder(config, folder / _file(component, ".json"), folder / _file(component, ".safetensors"))


def load_speech_encoder(folder: Path, component: Component) -> AnySpeechEncoder:
    """A component of kind `whisper_encoder`, or of kind `transformers`: one of the `SPEECH_ARCHITECTURES`."""
    if component.kind == PRETRAINED:
        return PretrainedSpeechEncoder.load(_checkpoint(folder, component, PretrainedSpeechConfig)).requires_grad_(
            False
        )
    config = _options(component, "whisper_encoder", SpeechEncoderConfig.model_validate)
    return _with_weights(SpeechEncoder(config), folder / _file(component, ".safetensors"))


def load_encoders(folder: Path) -> tuple[TextEncoder, SpeechEncoder]:
    """The encoders in a folder that has their weights and `encoders.json`, but no manifest yet."""
    options = json.loads((folder / ENCODERS).read_text(encoding="utf-8"))
    text = TextEncoderConfig.model_validate(options["text_encoder"])
    speech = SpeechEncoder(SpeechEncoderConfig.model_validate(options["speech_encoder"]))
    return (
        _text_encoder(text, folder / "tokenizer.json", folder / "text_encoder.safetensors"),
        _with_weights(speech, folder / "speech_encoder.safetensors"),
    )


def load_fusion(folder: Path, component: Component) -> FusionEnsemble:
    """A component of the kind that its options say: every file of it holds one member's weights."""
    config = _options(component, str(component.options.get("kind", "cross_attention")), FusionConfig.model_validate)
    if not component.files:
        raise BundleError(f"a component of kind {component.kind!r} needs a .safetensors file")
    return FusionEnsemble([_with_weights(fusion_of(config), folder / name) for name in component.files])


def _checkpoint(folder: Path, component: Component, kind: type[Pretrained]) -> Pretrained:
    """Where a component's checkpoint is: in the bundle's folder that its files are in, or where it came from."""
    repository, _, revision = component.source.partition("@")
    place = {"source": repository, "revision": revision or None}
    if component.files:
        parents = {(folder / name).parent for name in component.files}
        if len(parents) != 1:
            raise BundleError(f"the files of a component of kind {component.kind!r} must be in one folder")
        place = {"source": str(parents.pop()), "revision": None}
    return _options(component, PRETRAINED, lambda options: kind.model_validate({**options, **place}))  # pyright: ignore[reportGeneralTypeIssues]


def _text_encoder(config: TextEncoderConfig, tokenizer: Path, weights: Path) -> TextEncoder:
    return _with_weights(TextEncoder(config, Tokenizer.from_file(str(tokenizer))), weights)


def load_classifier(folder: Path, component: Component, label_space: LabelSpace) -> AudioClassifier:
    """A component of kind `audio_classification` or `patch_transformer`, beside transformers' own two files."""
    for name in CLASSIFIER_FILES:
        if name not in component.files:
            raise BundleError(f"a component of kind {component.kind!r} needs the file {name}")
    try:
        shape = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config, network = _network(component, shape)
        outputs = [label_space.index(category) for category in config.outputs]
    except (OSError, ValueError) as error:
        raise BundleError(f"the classifier in {folder} cannot be loaded: {error}") from error
    network = _with_weights(network, folder / _file(component, ".safetensors"))
    return AudioClassifier(network, extractor, outputs, len(label_space.categories), config.window_s)


def _network(component: Component, shape: PreTrainedConfig) -> tuple[ClassifierConfig, nn.Module]:
    if component.kind == "patch_transformer":
        config = _options(component, "patch_transformer", PatchClassifierConfig.model_validate)
        return config, PooledClassifier(AutoModel.from_config(shape), PatchTransformer(config.network))
    config = _options(component, "audio_classification", ClassifierConfig.model_validate)
    return config, SequenceClassifier(AutoModelForAudioClassification.from_config(shape), config.between)


def _options(component: Component, kind: str, validate: Callable[[object], Config]) -> Config:
    if component.kind != kind:
        raise BundleError(
            f"this Tenor cannot load a component of kind {component.kind!r} here, but one of kind {kind!r}"
        )
    try:
        return validate(component.options)
    except ValidationError as error:
        raise BundleError(f"the options of {kind!r} are not valid: {error}") from error


def _file(component: Component, ending: str) -> str:
    names = [name for name in component.files if name.endswith(ending)]
    if len(names) != 1:
        raise BundleError(f"a component of kind {component.kind!r} needs exactly one {ending} file, not {names}")
    return names[0]


def _with_weights(module: Module, path: Path) -> Module:
    try:
        module.load_state_dict(dequantized(load_file(path)))
    except (KeyError, RuntimeError, OSError, SafetensorError) as error:
        raise BundleError(f"{path} does not fit the options in its manifest: {error}") from error
    return module.float().eval().requires_grad_(False)
