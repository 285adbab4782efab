"""Which models answer: the bundle, the Whisper model and the device that the settings name."""

import torch

from shared.modeling.execution import Execution
from shared.modeling.loading import bundle_folder, read_manifest
from shared.modeling.pipeline import Pipeline
from shared.modeling.transcriber import Transcriber
from shared.modeling.whisper_weights import (
    configured_transcriber_component,
    delete_temporary_model,
    whisper_folder,
    whisper_name,
)
from shared.settings import Settings


def load_pipeline(settings: Settings) -> Pipeline:
    """Returns the pipeline that the settings name.

    Raises:
        BundleError: the bundle cannot be used.
        SetupError: the device does not exist, or does not support the settings.
        WeightsMissing: the settings name an unknown Whisper model. That no source has the weights of a known one is
            raised when the first audio is analysed.
    """
    # One thread per call, because the worker's own threads already use all cores. With two pools of threads on the same
    # cores, encoding a text took up to a second instead of 16 ms.
    torch.set_num_threads(1)
    execution = Execution.from_settings(settings)
    folder = bundle_folder(settings.models.bundle)
    asr = (
        configured_transcriber_component(settings.models.whisper, settings.models.whisper_dir)
        or read_manifest(folder).asr
    )

    def load_transcriber() -> Transcriber:
        whisper = whisper_folder(settings.models.whisper_dir, settings.data_dir / "models", whisper_name(asr))
        try:
            return Transcriber.load(whisper, execution.device, settings.models.whisper_compute)
        finally:
            delete_temporary_model()

    return Pipeline.load(folder, load_transcriber, execution, asr)
