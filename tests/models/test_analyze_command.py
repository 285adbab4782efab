"""What `tenor analyze` reads, and how it writes it, with small models."""

import csv
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from services.cli.main import app
from shared.audio.decoder import SAMPLE_RATE
from tests.audio_clips import encoded, spoken, wav
from tests.tiny_models import StubTranscriber, pipeline, write_bundle

ESCAPES = "\x1b[31m\x07\x9b0m\u202e"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(autouse=True)
def small_models(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "shared.modeling.model_selection.load_pipeline", lambda settings: pipeline(bundle, StubTranscriber())
    )


def run(*arguments: object, stdin: bytes | None = None) -> Result:
    """Run the command; its exit status must be one that it chose."""
    result = CliRunner().invoke(app, ["analyze", *map(str, arguments)], input=stdin, env={"COLUMNS": "80"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def rows_of(*arguments: object, stdin: bytes | None = None) -> list[dict[str, Any]]:
    result = run(*arguments, "--format", "jsonl", stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def texts_file(folder: Path, *lines: object) -> Path:
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def test_each_line_of_a_text_file_is_a_turn(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes(b"\xef\xbb\xbfI am happy\r\n\n   \nleave me\n")
    rows = rows_of("--text-file", file, "--speaker", "Ada")
    assert [(row["file"], row["line"], row["speaker"], row["text"]) for row in rows] == [
        (str(file), 1, "Ada", "I am happy"),
        (str(file), 4, "Ada", "leave me"),
    ]
    assert [row["text"] for row in rows_of("--text-file", "-", stdin=file.read_bytes())] == ["I am happy", "leave me"]


def test_the_scores_of_each_modality_stand_beside_the_fused_ones(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav())
    (row,) = rows_of(tmp_path / "a.wav")
    assert row["scores"].keys() == row["text_only"].keys() == row["audio_only"].keys()
    assert len({json.dumps(row[name]) for name in ("scores", "text_only", "audio_only")}) == 3
    (row,) = rows_of("--text", "I am happy")
    assert (row["scores"], row["audio_only"]) == (row["text_only"], None)


def test_the_sessions_of_a_jsonl_file_are_conversations_of_their_own(tmp_path: Path) -> None:
    alone = rows_of("--text", "what a day")[0]["scores"]
    lines = [
        {"text": "I am happy", "session": "one", "speaker": "Ada"},
        {"text": "what a day", "session": "two"},
        {"text": "what a day", "session": "one"},
    ]
    file = texts_file(tmp_path, *lines)
    first, other, second = rows_of("--jsonl", file, "--conversation")
    assert [(row["session"], row["speaker"]) for row in (first, other)] == [("one", "Ada"), ("two", "speaker")]
    assert [row["context_turns"] for row in (first, other, second)] == [0, 0, 1]
    assert other["scores"] == pytest.approx(alone, abs=1e-6)
    assert second["scores"] != pytest.approx(alone, abs=1e-6)
    assert [row["context_turns"] for row in rows_of("--jsonl", file)] == [0, 0, 0]
    assert [row["context_turns"] for row in rows_of("--jsonl", "-", stdin=file.read_bytes())] == [0, 0, 0]


def test_a_line_that_is_not_valid_is_named_and_the_others_are_analysed(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_bytes(
        b'{"text": "one"}\n{"text": "a", "text": "b"}\n{"text": "\\u200b"}\n{"txt": "a"}\nnot json\n["a"]\n'
        b'{"text": "caf\xe9"}\n{"text": "x", "speaker": "a\\nb"}\n' + json.dumps({"text": "x" * 10_001}).encode()
    )
    result = run("--jsonl", file, "--format", "jsonl")
    assert result.exit_code == 1
    assert [json.loads(line)["line"] for line in result.stdout.splitlines()] == [1]
    errors = [line.removeprefix(f"{file}:") for line in result.stderr.splitlines()]
    assert [error.split(": ")[0] for error in errors] == list("23456789")
    said = (
        "'text' twice",
        "no visible",
        "did you mean 'text'",
        "not valid",
        "JSON object",
        "byte 13",
        "speaker",
        "10000",
    )
    assert [words for words, error in zip(said, errors, strict=True) if words not in error] == []


def test_recordings_come_from_stdin_pipes_and_folders(tmp_path: Path) -> None:
    folder, pipe = tmp_path / "calls", tmp_path / "pipe"
    (folder / "deeper").mkdir(parents=True)
    for name in ("b.wav", "a.unknown", "deeper/c", ".hidden.wav", "notes.txt"):
        (folder / name).write_bytes(wav())
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[wav()])
    writer.start()
    result = run("--recursive", "-", pipe, folder, "--format", "jsonl", stdin=wav())
    writer.join()
    assert result.exit_code == 0
    names = [folder / name for name in ("a.unknown", "b.wav", "deeper/c")]
    assert [json.loads(line)["file"] for line in result.stdout.splitlines()] == ["-", str(pipe), *map(str, names)]
    assert result.stderr == f"{folder}: 1 files are skipped, which are no recordings by their names\n"


def test_a_folder_needs_the_option_and_a_recording(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for arguments, words in (((tmp_path,), "add --recursive"), (("-r", tmp_path), "no recording in this folder")):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert words in result.stderr


def test_each_channel_is_a_speaker(tmp_path: Path) -> None:
    agent, customer = spoken("english"), spoken("angry")
    pause = np.zeros(2 * SAMPLE_RATE, np.float32)
    call = np.stack(
        [
            np.concatenate([agent, pause, np.zeros_like(customer)]),
            np.concatenate([np.zeros_like(agent), pause, customer]),
        ]
    )
    file = tmp_path / "call.wav"
    file.write_bytes(encoded("wav", call, SAMPLE_RATE))
    rows = rows_of(file, "--channels", "agent, customer", "--conversation")
    assert [row["speaker"] for row in rows] == ["agent", "customer"]
    assert rows[0]["end"] < agent.size / SAMPLE_RATE + 1 < rows[1]["start"]
    assert [row["baseline_turns"] for row in rows] == [0, 0]
    assert [row["context_turns"] for row in rows] == [0, 1]
    wrong = run(file, "--channels", "a,b,c")
    assert wrong.exit_code == 1
    assert "has 2 channels: name one speaker for each with --channels, not 3" in wrong.stderr


@pytest.mark.parametrize(("copy", "code"), [(0.02, "crosstalk_removed"), (1.0, "channels_alike")])
def test_speech_that_both_channels_hold_is_one_turn(tmp_path: Path, copy: float, code: str) -> None:
    agent = np.concatenate([spoken("english"), np.zeros(SAMPLE_RATE, np.float32)])
    file = tmp_path / "call.wav"
    file.write_bytes(encoded("wav", np.stack([agent, copy * agent]), SAMPLE_RATE))
    (row,) = rows_of(file, "--channels", "agent,customer")
    assert row["speaker"] == "agent"
    assert [warning["code"] for warning in row["warnings"]] == [code]


def test_csv_has_a_column_for_each_score(tmp_path: Path) -> None:
    file = texts_file(tmp_path, {"text": 'a "quoted",\ntext'}, {"text": "two"})
    result = run("--jsonl", file, "--format", "csv")
    first, second = csv.DictReader(io.StringIO(result.stdout))
    assert first["text"] == 'a "quoted",\ntext'
    assert (second["line"], second["modalities_used"], second["audio_only_joy"]) == ("2", "text", "")
    assert sum(float(second[f"scores_{name}"]) for name in ("anger", "disgust", "fear", "joy")) < 1
    assert 0 < float(second["text_only_joy"]) < 1


@pytest.mark.parametrize("output", ["table", "jsonl", "csv"])
def test_no_escape_sequence_reaches_the_terminal(tmp_path: Path, output: str) -> None:
    folder = tmp_path / f"calls{ESCAPES}"
    folder.mkdir()
    (folder / "good.wav").write_bytes(wav())
    (folder / "broken.wav").write_bytes(b"no recording")
    written = [
        run("-r", folder, folder / f"missing{ESCAPES}", "--format", output),
        run("--jsonl", texts_file(tmp_path, {"text": f"I am{ESCAPES} happy"}), "--format", output),
        run("--text", f"I am{ESCAPES} happy", "--format", output),
        run("good.wav", "--speaker", f"Ada{ESCAPES}"),
    ]
    for result in written:
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & {*result.stdout, *result.stderr}
    assert [result.exit_code for result in written] == [1, 0, 0, 2]


def test_markup_in_names_and_texts_is_printed_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "[red]a.wav").write_bytes(wav())
    assert "[red]a.wav" in run(tmp_path / "[red]a.wav").stdout
    assert "[bold]b[/]" in run("--text", "[bold]b[/]").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give one of"),
        (["a.wav", "--text", "x"], "give one of"),
        (["--text", "x", "--jsonl", "x"], "give one of"),
        (["--text", ""], "no visible character"),
        (["--text", " \u200b"], "no visible character"),
        (["--text", "x", "--conversation"], "several texts"),
        (["--text", "x", "--recursive"], "FILE..."),
        (["--jsonl", "x", "--channels", "a,b"], "FILE..."),
        (["a.wav", "--channels", "a,b", "--speaker", "c"], "names the speakers already"),
        (["a.wav", "--channels", "a,,b"], "--channels"),
        (["a.wav", "--speaker", "a\nb"], "control character"),
        (["a.wav", "--format", "xml"], "xml"),
    ],
)
def test_a_wrong_command_line_exits_with_status_2(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in " ".join(result.stderr.replace("│", "").split())


def test_a_missing_file_of_texts_is_named() -> None:
    result = run("--text-file", "nonesuch.txt")
    assert (result.exit_code, result.stderr) == (1, "nonesuch.txt: not_found: there is no such file\n")
