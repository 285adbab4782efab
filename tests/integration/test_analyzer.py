"""`tenor analyze --conversation` predicts what the service predicts for the same turns."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from fastapi.testclient import TestClient

from services.analyzer import Analyzer, InputTurn, Row
from services.turn_sources import read_recordings
from shared.audio.decoder import SAMPLE_RATE, Samples
from shared.audio.sandbox import AudioSandbox
from shared.domain.job import TURN_LANES
from shared.domain.transcript import Segment, Transcript, TranscriptSource
from shared.messaging.broker import Broker
from shared.modeling.pipeline import Pipeline
from shared.modeling.transcriber import Clip, Transcriber
from shared.settings import Settings
from shared.storage.blobs import BlobFolder
from shared.store.database import Database
from tests.audio_clips import tone, wav
from tests.integration.conftest import read_turn
from tests.tiny_models import write_bundle
from workers.job_runner import JobRunner
from workers.stages import Stages
from workers.tasks.analyze_turn import AnalyzeTurn

TEXTS = {1.0: "I am happy", 1.5: "leave me alone", 2.0: "", 2.5: "what a day", 3.0: "I am so sad"}
"""The transcript of a clip by its seconds. The third turn is speech without words, which still counts as a turn."""


class TranscriberByLength:
    """A transcriber whose transcript depends on the length of the clip, and its probability on the earlier turns."""

    def transcribe(self, clips: Sequence[Clip]) -> list[Transcript]:
        return [self._transcript(clip) for clip in clips]

    def detect_speech(self, samples: Samples) -> list[tuple[float, float]]:
        return [(0.0, 1.0)]

    def _transcript(self, clip: Clip) -> Transcript:
        text, probability = TEXTS[round(clip.samples.size / SAMPLE_RATE, 1)], 0.8 + len(clip.earlier_languages) / 100
        segments = (Segment(start=0.0, end=1.0, text=text),) if text else ()
        return Transcript(
            language="en", language_probability=probability, segments=segments, source=TranscriptSource.asr
        )


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline.load(write_bundle(tmp_path / "bundle"), lambda: cast("Transcriber", TranscriberByLength()))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{seconds}.wav" for seconds in TEXTS]
    for number, (file, seconds) in enumerate(zip(files, TEXTS, strict=True)):
        file.write_bytes(wav(tone(seconds, hertz=200 + 50 * number)))
    return files


def analyze(pipeline: Pipeline, files: list[Path], conversation: bool) -> list[Row]:
    analyzer = Analyzer(pipeline, conversation=conversation)
    rows: list[Row] = []
    with closing(AudioSandbox(children=1)) as audio:
        for _, turn, _ in read_recordings(files, ["speaker"], audio):
            assert isinstance(turn, InputTurn), turn
            rows.append(analyzer.analyze(turn))
    return rows


def test_a_conversation_gets_the_predictions_that_the_service_makes(
    pipeline: Pipeline, files: list[Path], api: TestClient, session_id: str, settings: Settings, database: Database
) -> None:
    stages = Stages(pipeline, settings.batches, settings.worker.bulk_throttle_s)
    sandbox = AudioSandbox(children=1)
    task = AnalyzeTurn(settings, BlobFolder(settings.blob_dir), pipeline, stages, sandbox)
    runner = JobRunner(settings, database, Broker(settings.broker.url), dict.fromkeys(TURN_LANES, task), 2)

    def serve(file: Path) -> dict[str, Any]:
        response = api.post(f"/v1/sessions/{session_id}/turns", files={"audio": (file.name, file.read_bytes())})
        assert response.status_code == 202, response.text
        with database.transaction() as transaction:
            tenant_id = transaction.accounts.ensure_tenant("acme")
        runner.run(read_turn(database, tenant_id, UUID(response.json()["id"])).job.id)
        return api.get(response.headers["Location"]).json()

    served = [serve(file) for file in files]
    stages.close()
    sandbox.close()
    rows = analyze(pipeline, files, conversation=True)
    assert [row.context_turns for row in rows] == [0, 1, 0, 1, 1]
    assert [row.language_probability for row in rows] == pytest.approx([0.8, 0.81, 0.82, 0.83, 0.84])
    for row, turn in zip(rows, served, strict=True):
        prediction = turn["prediction"]
        assert row.language_probability == pytest.approx(turn["transcript"]["language_probability"])
        assert row.scores == pytest.approx(prediction["scores"]["categories"], abs=1e-5)
        assert row.incongruence == pytest.approx(prediction["incongruence"], abs=1e-5)
        assert row.baseline_turns == prediction["baseline_turns"]
        assert row.context_turns == prediction["context_turns"]
        assert list(row.modalities_used) == prediction["modalities_used"]


def test_the_texts_of_the_turns_before_change_the_prediction(
    pipeline: Pipeline, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_context = analyze(pipeline, files, conversation=True)
    monkeypatch.setattr("services.analyzer.context_of", lambda texts, context_turns: ())
    without = analyze(pipeline, files, conversation=True)
    assert with_context[0].scores == without[0].scores
    assert with_context[1].scores != pytest.approx(without[1].scores, abs=1e-5)
