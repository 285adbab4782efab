"""The folder of a trained run: what was trained (`run.json`), the fusion's weights, and the encoders that trained."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import lightning
from pydantic import BaseModel
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType] - its PathLike is bare

from shared.audio.decoder import probe
from shared.modeling.fusion import AnyFusion, FusionOutput, build_fusion
from training.args import AudioBranch, ModelArgs, TextBranch
from training.data.examples import Example, collate, unencoded_batch
from training.data.input_sources import CachedFeatures, InputSource, RawInputs
from training.data.label_schemes import SCHEMES, LabelScheme
from training.data.registry import load
from training.data.speaker_summaries import Summarize, summarize_cached
from training.data.splits import SplitArgs
from training.data.utterance import Utterance
from training.encoder_branches import EncoderBranches

CONFIG = "run.json"
FUSION = "fusion.safetensors"
ENCODERS = "encoders"
"""The folder of the encoders that trained, inside the run's folder."""

AnyBranch = TypeVar("AnyBranch", TextBranch | None, AudioBranch | None)


class RunConfig(BaseModel):
    """What a run was trained on, and its model: the content of `run.json`."""

    corpora: tuple[str, ...]
    labels: LabelScheme = SCHEMES["ekman7"]
    split: SplitArgs = SplitArgs()
    model: ModelArgs

    def with_trained_encoders(self, encoders: Path) -> ModelArgs:
        """Returns the model with the encoders in a folder that `train` wrote, none of which trains any further."""
        text, audio = _frozen(self.model.text, encoders, "text"), _frozen(self.model.audio, encoders, "audio")
        return self.model.model_copy(update={"text": text, "audio": audio})

    def utterances(self, data: Path) -> list[Utterance]:
        """Returns the run's corpora with its labels and splits, and only the modalities that its model reads.

        With a multi-label loss, each category of an utterance counts as 1 and not by its share.

        Args:
            data: the folder with the corpora.

        Raises:
            ValueError: a corpus has nothing that the encoders read, or an encoder has nothing to read in any corpus.
        """
        found = self.split.apply(load(data, self.corpora, self.labels))
        if self.model.loss.multi_label:
            found = [replace(u, target=tuple(float(share > 0) for share in u.target or ())) for u in found]
        if self.model.trains_encoders:
            found = [self._read_modalities(utterance) for utterance in found]
            found = [u for u in found if u.text is not None or u.audio is not None]
            self._check_modalities(found)
        return [utterance for utterance in found if self._has_allowed_length(utterance)]

    def input_source(
        self,
        utterances: Sequence[Utterance],
        cache: Path | None,
        augmentations: Sequence[str] = ("original",),
        seed: int = 0,
    ) -> InputSource:
        """Returns what gives the model its text and audio.

        Args:
            utterances: which utterances.
            cache: a folder written by `cache_features`; None for a run whose encoders train.
            augmentations: which augmentations of the audio to open in the cache.
            seed: of the augmentations.

        Raises:
            ValueError: the run needs a cache, and none is given.
        """
        if self.model.trains_encoders:
            text = self.model.text
            return RawInputs(utterances, 0 if text is None else text.encoder.context_turns, seed)
        if cache is None:
            raise ValueError("this run was trained on cached features: give the cache")
        return CachedFeatures(cache, tuple(dict.fromkeys(u.corpus for u in utterances)), augmentations)

    def _read_modalities(self, utterance: Utterance) -> Utterance:
        return replace(
            utterance,
            text=None if self.model.text is None else utterance.text,
            audio=None if self.model.audio is None else utterance.audio,
        )

    def _check_modalities(self, utterances: Sequence[Utterance]) -> None:
        if left_out := set(self.corpora) - {u.corpus for u in utterances}:
            raise ValueError(f"{', '.join(sorted(left_out))}: the encoders of this run read nothing of it")
        if self.model.text is not None and all(u.text is None for u in utterances):
            raise ValueError(f"the text encoder has nothing to read: {', '.join(self.corpora)} have no texts here")
        if self.model.audio is not None and all(u.audio is None for u in utterances):
            raise ValueError(
                f"the audio encoder has nothing to read: {', '.join(self.corpora)} have no recordings here"
            )

    def _has_allowed_length(self, utterance: Utterance) -> bool:
        audio = self.model.audio
        if utterance.audio is None or audio is None or audio.seconds is None:
            return True
        shortest, longest = audio.seconds
        return shortest <= (probe(utterance.audio).duration_s or 0) <= longest


@dataclass(frozen=True)
class TrainedRun:
    """A trained run: its configuration, its fusion, and the encoders if they trained too."""

    config: RunConfig
    fusion: AnyFusion
    branches: EncoderBranches | None

    @classmethod
    def load(cls, folder: Path, accelerator: str = "cpu") -> "TrainedRun":
        """Returns the run in a folder, on the device of a Lightning accelerator."""
        device = lightning.Fabric(accelerator=accelerator, devices=1).device
        config = RunConfig.model_validate_json((folder / CONFIG).read_text())
        fusion = build_fusion(config.model.fusion)
        fusion.load_state_dict(load_file(folder / FUSION))
        branches = None
        if config.model.trains_encoders:
            model = config.with_trained_encoders(folder / ENCODERS)
            branches = EncoderBranches(model.text, model.audio).eval().to(device)
        return cls(config, fusion.eval().to(device), branches)

    def save(self, folder: Path) -> None:
        """Write the run to a folder, the fusion in half precision."""
        state = {name: tensor.half() for name, tensor in self.fusion.state_dict().items()}
        save_file(state, folder / FUSION)
        if self.branches is not None:
            self.branches.save(folder / ENCODERS)
        (folder / CONFIG).write_text(self.config.model_dump_json(indent=1))

    def predict(self, examples: Sequence[Example]) -> FusionOutput:
        """Returns the logits and valences of a batch, on the CPU."""
        shapes, branches = self.config.model.fusion, self.branches
        batch = collate(examples, shapes) if branches is None else branches(unencoded_batch(examples), shapes)
        batch = batch.to(next(self.fusion.parameters()).device)
        fused: FusionOutput = self.fusion(batch.text, batch.audio, batch.baseline)
        return FusionOutput(fused.logits.cpu(), fused.valence.cpu())

    def summarizer(self, source: InputSource) -> Summarize:
        """Returns the function that computes the audio summaries of an input source's utterances."""
        if isinstance(source, CachedFeatures):
            return summarize_cached(source)
        assert self.branches is not None
        return self.branches.summarizer(source, self.config.model.fusion)


def _frozen(branch: AnyBranch, encoders: Path, name: str) -> AnyBranch:
    if branch is None:
        return branch
    source = encoders / name if (encoders / name).is_dir() else encoders
    encoder = branch.encoder.model_copy(update={"source": str(source), "revision": None})
    return branch.model_copy(update={"encoder": encoder, "freeze": "all", "lora": None, "recompute": False})
