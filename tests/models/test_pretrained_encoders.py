"""The promises of encoders by name: padding changes nothing, and what comes out is what transformers gives."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoFeatureExtractor, AutoModel, AutoTokenizer

from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.errors import BundleError, SetupError, WeightsMissing
from shared.modeling import hub
from shared.modeling.pretrained_encoders import (
    PretrainedSpeechConfig,
    PretrainedSpeechEncoder,
    PretrainedTextConfig,
    PretrainedTextEncoder,
)
from shared.modeling.speech_encoders import SpeechEncoder, SpeechEncoderConfig
from tests import checkpoints

Load = Callable[..., Path]
TEXTS = ["I am happy", "no", "what a long and weary way it was", ""]
CONTEXT = [["who are you?", "it is me"], [], ["why?"], ["nobody", "came"]]
WAVES = sorted(set(checkpoints.SPEECH) - {"Whisper"})

each_text = pytest.mark.parametrize("name", checkpoints.TEXT)
each_speech = pytest.mark.parametrize("name", checkpoints.SPEECH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the checkpoint of that name, made when it is first asked for."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            made[name] = (checkpoints.TEXT | checkpoints.SPEECH)[name](tmp_path_factory.mktemp("checkpoint") / "model")
        return made[name]

    return of


def text_encoder(folder: Path, max_tokens: int = 40, prefix: str = "") -> PretrainedTextEncoder:
    return PretrainedTextEncoder.load(PretrainedTextConfig(source=str(folder), max_tokens=max_tokens, prefix=prefix))


def speech_encoder(
    folder: Path, layers: tuple[int, ...] | None = None, pooling: int = 5, max_seconds: float = 30.0
) -> PretrainedSpeechEncoder:
    return PretrainedSpeechEncoder.load(
        PretrainedSpeechConfig(source=str(folder), layers=layers, pooling=pooling, max_seconds=max_seconds)
    )


def sound(seconds: float, seed: int = 0) -> Samples:
    """Noise louder in its second half, so that normalising it is seen."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(int(seconds * SAMPLE_RATE)) * 0.1
    noise[noise.size // 2 :] *= 2
    return (noise + 0.05).astype(np.float32)


@each_text
@torch.inference_mode()
def test_encoding_texts_in_a_batch_equals_encoding_each_alone(name: str, folder: Callable[[str], Path]) -> None:
    encoder = text_encoder(folder(name))
    together = encoder(TEXTS, CONTEXT)
    for i, (text, turns) in enumerate(zip(TEXTS, CONTEXT, strict=True)):
        alone = encoder([text], [turns])
        size = alone.features.shape[1]
        torch.testing.assert_close(together.features[i, :size], alone.features[0], atol=1e-4, rtol=1e-4)
        assert together.mask[i].sum() == size
        assert together.features[i, size:].abs().sum() == 0


@each_text
@torch.inference_mode()
def test_a_text_encoder_equals_that_of_transformers(name: str, folder: Callable[[str], Path]) -> None:
    ids = AutoTokenizer.from_pretrained(folder(name))(TEXTS[0], return_tensors="pt")
    expected = AutoModel.from_pretrained(folder(name)).eval()(**ids).last_hidden_state
    encoder = text_encoder(folder(name))
    torch.testing.assert_close(encoder(TEXTS[:1]).features, expected, atol=1e-4, rtol=1e-4)
    assert encoder.width == checkpoints.WIDTH


@each_text
@torch.inference_mode()
def test_the_turns_before_change_how_a_text_is_read_but_are_not_given(name: str, folder: Callable[[str], Path]) -> None:
    encoder = text_encoder(folder(name))
    alone, after, other = encoder([TEXTS[0]] * 3, [[], ["who are you?"], ["nobody came"]]).features
    assert alone.shape == after.shape
    assert not torch.allclose(alone, after, atol=1e-3)
    assert not torch.allclose(after, other, atol=1e-3)


@torch.inference_mode()
def test_a_context_that_is_too_long_loses_its_beginning(folder: Callable[[str], Path]) -> None:
    encoder = text_encoder(folder("XLM-R"))
    long = ["nobody came to see me"] * 9
    whole = encoder([TEXTS[0]], [long]).features
    assert whole.shape == encoder(TEXTS[:1]).features.shape
    torch.testing.assert_close(encoder([TEXTS[0]], [["why?", *long]]).features, whole)
    assert not torch.allclose(encoder([TEXTS[0]], [[*long, "why?"]]).features, whole, atol=1e-3)


@torch.inference_mode()
def test_a_text_that_is_too_long_is_cut_at_its_end_and_leaves_no_room_for_context(
    folder: Callable[[str], Path],
) -> None:
    encoder = text_encoder(folder("XLM-R"))
    long = "what a long and weary way it was " * 5
    tokens = encoder([long], [["why?"]])
    assert tokens.mask.sum() == 40
    torch.testing.assert_close(tokens.features, encoder([long + "I am happy"]).features)


@torch.inference_mode()
def test_a_prefix_is_put_before_the_text(folder: Callable[[str], Path]) -> None:
    plain, with_prefix = (text_encoder(folder("BERT"), prefix=prefix) for prefix in ("", "why did "))
    torch.testing.assert_close(with_prefix(["nobody"]).features, plain(["why did nobody"]).features)


def test_a_text_encoder_reports_texts_that_it_cannot_tokenize(folder: Callable[[str], Path]) -> None:
    encoder = text_encoder(folder("XLM-R"))
    assert encoder.can_encode("I am happy")
    assert encoder.can_encode("میں خوش ہوں")
    assert not encoder.can_encode("我很高兴")
    assert not encoder.can_encode("...")


@pytest.mark.parametrize("name", ["XLM-R", "BERT"])
def test_more_tokens_than_positions_are_refused(name: str, folder: Callable[[str], Path]) -> None:
    text_encoder(folder(name), max_tokens=checkpoints.POSITIONS)([TEXTS[2] * 9])
    with pytest.raises(BundleError, match=f"max_tokens is 49.*{checkpoints.POSITIONS} positions"):
        text_encoder(folder(name), max_tokens=checkpoints.POSITIONS + 1)


@each_speech
@torch.inference_mode()
def test_encoding_clips_in_a_batch_equals_encoding_each_alone(name: str, folder: Callable[[str], Path]) -> None:
    # The longest is cut into windows.
    clips = [sound(seconds, seed) for seed, seconds in enumerate((1.3, 0.05, 2.7, 1.3, 0.4))]
    encoder = speech_encoder(folder(name), max_seconds=2)
    together = encoder(clips)
    for i, clip in enumerate(clips):
        alone = encoder([clip])
        size = alone.features.shape[1]
        torch.testing.assert_close(together.features[i, :size], alone.features[0], atol=1e-4, rtol=1e-4)
        assert together.mask[i].sum() == size
        assert together.features[i, size:].abs().sum() == 0


@pytest.mark.parametrize("name", WAVES)
@torch.inference_mode()
def test_a_speech_encoder_equals_that_of_transformers(name: str, folder: Callable[[str], Path]) -> None:
    clip = sound(1.0)
    values = AutoFeatureExtractor.from_pretrained(folder(name))(clip, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    model = AutoModel.from_pretrained(folder(name)).eval()
    expected = torch.stack(model(values["input_values"], output_hidden_states=True).hidden_states, dim=2)
    encoder = speech_encoder(folder(name), pooling=1)
    torch.testing.assert_close(encoder([clip]).features, expected, atol=1e-4, rtol=1e-4)
    assert encoder.width == checkpoints.WIDTH
    assert encoder.output_layer_count == checkpoints.LAYERS + 1


@torch.inference_mode()
def test_a_whisper_encoder_equals_the_encoder_of_compact(folder: Callable[[str], Path]) -> None:
    config = SpeechEncoderConfig(width=16, layers=3, heads=2, hidden=32, positions=100, first_layer=2)
    own = SpeechEncoder(config).eval()
    state = load_file(folder("Whisper") / "model.safetensors")
    own.load_state_dict({name: state[f"model.encoder.{name}"] for name in own.state_dict()})
    clips = [sound(1.3), sound(4.1)]
    expected = own(clips)
    given = speech_encoder(folder("Whisper"), layers=(2, 3))(clips)
    torch.testing.assert_close(given.features, expected.features, atol=1e-5, rtol=1e-4)
    assert given.mask.equal(expected.mask)


@each_speech
@torch.inference_mode()
def test_only_the_layers_asked_for_are_given(name: str, folder: Callable[[str], Path]) -> None:
    clip = sound(0.5)
    every = speech_encoder(folder(name))([clip]).features
    chosen = speech_encoder(folder(name), layers=(3, 1))([clip]).features
    torch.testing.assert_close(chosen, every[:, :, [3, 1]])
    assert not torch.allclose(chosen[:, :, 0], chosen[:, :, 1], atol=1e-3)


@pytest.mark.parametrize("layers", [(), (4,), (-1,)])
def test_layers_that_are_not_there_are_refused(layers: tuple[int, ...], folder: Callable[[str], Path]) -> None:
    with pytest.raises(BundleError, match="has layers 0 to 3"):
        speech_encoder(folder("XLS-R"), layers=layers)


@each_speech
def test_every_layer_is_there_in_training_too(name: str, folder: Callable[[str], Path]) -> None:
    # A published config drops layers and hides frames, which needs more of them than a short clip has.
    config = PretrainedSpeechConfig(source=str(folder(name)), mask_time=0.3, mask_features=0.2)
    encoder = PretrainedSpeechEncoder.load(config).train()
    every = [encoder([sound(0.05), sound(0.6)]).features for _ in range(8)]
    assert {features.shape[2] for features in every} == {checkpoints.LAYERS + 1}
    torch.stack(every).square().sum().backward()
    assert all(weight.grad is not None for layer in _layers(encoder) for weight in layer.parameters())


def _layers(encoder: PretrainedSpeechEncoder) -> torch.nn.ModuleList:
    layers = getattr(encoder.model, "encoder", encoder.model).layers
    assert isinstance(layers, torch.nn.ModuleList)
    return layers


@pytest.mark.parametrize("name", WAVES)
def test_training_hides_spans_only_where_asked(name: str, folder: Callable[[str], Path]) -> None:
    clip = sound(2.0)

    def front(mask_time: float) -> list[torch.Tensor]:
        config = PretrainedSpeechConfig(source=str(folder(name)), mask_time=mask_time)
        encoder = PretrainedSpeechEncoder.load(config).train()
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return [encoder([clip]).features[:, :, 0] for _ in range(2)]

    torch.manual_seed(0)
    np.random.seed(0)  # transformers draws the spans from here
    plain, masked = front(0.0), front(0.4)
    torch.testing.assert_close(plain[0], plain[1])
    assert not torch.allclose(masked[0], masked[1], atol=1e-3)


@each_text
@torch.inference_mode()
def test_a_text_encoder_is_unchanged_by_saving_and_loading(
    name: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    encoder = text_encoder(folder(name))
    encoder.save(tmp_path / "saved")
    assert [path.name for path in (tmp_path / "saved").glob("*.safetensors")] == ["model.safetensors"]
    again = text_encoder(tmp_path / "saved")
    torch.testing.assert_close(again(TEXTS, CONTEXT).features, encoder(TEXTS, CONTEXT).features)


@each_speech
@torch.inference_mode()
def test_a_speech_encoder_is_unchanged_by_saving_and_loading(
    name: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    encoder = speech_encoder(folder(name))
    encoder.save(tmp_path / "saved")
    assert [path.name for path in (tmp_path / "saved").glob("*.safetensors")] == ["model.safetensors"]
    again = speech_encoder(tmp_path / "saved")
    torch.testing.assert_close(again([sound(1.0)]).features, encoder([sound(1.0)]).features)


@torch.inference_mode()
def test_a_checkpoint_that_is_a_pickle_of_tensors_is_read(folder: Callable[[str], Path], tmp_path: Path) -> None:
    pickled = shutil.copytree(folder("XLS-R"), tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    features, same = (speech_encoder(source)([sound(1.0)]).features for source in (pickled, folder("XLS-R")))
    torch.testing.assert_close(features, same)


def test_a_pickle_that_would_run_code_is_refused(folder: Callable[[str], Path], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "sprung",)

    pickled = shutil.copytree(folder("XLS-R"), tmp_path / "pickled")
    torch.save({"weight": Trap()}, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"pytorch_model\.bin.*more than tensors"):
        speech_encoder(pickled)
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_without_weights_says_which_files_it_must_hold(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    bare = shutil.copytree(folder("XLS-R"), tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(WeightsMissing, match=r"no weights.*model\.safetensors.*pytorch_model\.bin"):
        speech_encoder(bare)


def test_a_checkpoint_of_another_kind_is_refused_by_name(folder: Callable[[str], Path]) -> None:
    with pytest.raises(BundleError, match=r"'whisper'.*xlm-roberta"):
        text_encoder(folder("Whisper"))
    with pytest.raises(BundleError, match=r"'bert'.*wav2vec2"):
        speech_encoder(folder("BERT"))


@pytest.mark.parametrize("name", ["XLS-R", "Whisper"])
def test_a_checkpoint_that_lacks_weights_is_refused(name: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    torn = shutil.copytree(folder(name), tmp_path / "torn")
    state = load_file(torn / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if ".layers.1." not in name}
    save_file(kept, torn / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BundleError, match=r"incomplete.*layers\.1\."):
        speech_encoder(torn)


@pytest.mark.parametrize(
    ("file", "content"), [("model.safetensors", b"no weights"), ("config.json", b"{}"), ("config.json", b"")]
)
def test_a_damaged_checkpoint_raises_a_setup_error(
    file: str, content: bytes, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    damaged = shutil.copytree(folder("BERT"), tmp_path / "damaged")
    (damaged / file).write_bytes(content)
    with pytest.raises(BundleError, match="damaged"):
        text_encoder(damaged)


@pytest.mark.parametrize("file", ["vocab.txt", "preprocessor_config.json"])
def test_a_checkpoint_without_its_tokenizer_or_extractor_is_refused(
    file: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    load, name = (text_encoder, "BERT") if file == "vocab.txt" else (speech_encoder, "HuBERT")
    bare = shutil.copytree(folder(name), tmp_path / "bare")
    (bare / file).unlink()
    with pytest.raises(BundleError, match="bare"):
        load(bare)


def test_a_repository_needs_its_revision(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="revision"):
        PretrainedTextEncoder.load(PretrainedTextConfig(source="FacebookAI/xlm-roberta-base"))


@pytest.mark.parametrize("source", ["/no/such/folder", "FacebookAI/xlm-roberta-base"])
def test_a_checkpoint_that_cannot_be_fetched_is_named(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class NoHub:
        def model_info(self, *_: object, **__: object) -> None:
            raise ConnectionError("no route to the hub")

    monkeypatch.setattr(hub, "HfApi", NoHub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SetupError, match=source):
        PretrainedTextEncoder.load(PretrainedTextConfig(source=source, revision="0" * 40))
