"""Small copies of the corpora, laid out as their publishers do, with made-up words and synthesised sound."""

import csv
from pathlib import Path

from shared.domain.emotion import EKMAN7
from tests.sounds import tone, wav

RAVDESS_ACTORS = (1, 2, 19, 21)
"""Two that train, one that validates, one that tests."""

URDU_SPEAKERS = {
    "SF6": "Happy",
    "SF9": "Neutral",
    "SF10": "Sad",
    "SF11": "Sad",
    "SM1": "Angry",
    "SM22": "Neutral",
    "SM23": "Sad",
    "SM4": "Angry",
    "SM7": "Happy",
    "SM5": "Neutral",
    "SM25": "Sad",
}
"""The corpus's own speakers: those that validate, each with the one label that it has there, and four that train."""

FEELINGS = {
    "anger": "leave me alone now",
    "disgust": "that smells so bad",
    "fear": "there is something out there",
    "joy": "what a lovely day",
    "neutral": "the train is at nine",
    "sadness": "he will never be back",
    "surprise": "i did not see that coming",
}
SENTIMENTS = {"joy": "positive", "neutral": "neutral", "surprise": "positive"}
PLUTCHIK = {"anger": 1, "disgust": 3, "fear": 4, "joy": 5, "sadness": 6, "surprise": 7}


def write_data(folder: Path) -> Path:
    """All corpora."""
    write_ravdess(folder / "ravdess")
    write_urdu(folder / "urdu_latif")
    write_meld(folder / "meld")
    write_goemotions(folder / "goemotions_ekman")
    write_xed(folder / "xed")
    write_tess(folder / "tess")
    write_emot(folder / "indonlu_emot")
    return folder


def write_ravdess(folder: Path) -> None:
    """A clip for each actor and emotion, and a song that is no speech."""
    for actor in RAVDESS_ACTORS:
        for emotion in range(1, 9):
            name = f"03-01-{emotion:02}-01-{1 + emotion % 2:02}-01-{actor:02}"
            _write_sound(folder / f"Actor_{actor:02}" / f"{name}.wav", 60 * emotion + actor)
    _write_sound(folder / "Actor_01" / "03-02-03-01-01-01-01.wav", 440)


def write_urdu(folder: Path) -> None:
    for number, (speaker, label) in enumerate(URDU_SPEAKERS.items(), start=1):
        _write_sound(folder / label / f"{speaker}_F{number}_{label[0]}{number:02}.wav", 100 + 20 * number)


def write_tess(folder: Path) -> None:
    for speaker in ("OAF", "YAF"):
        for number, emotion in enumerate(("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")):
            _write_sound(folder / f"{speaker}_{emotion}" / f"{speaker}_back_{emotion}.wav", 120 + 20 * number)


def write_emot(folder: Path) -> None:
    folder.mkdir(parents=True)
    for part in ("train", "valid"):
        with (folder / f"{part}_preprocess.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "tweet"])
            writer.writerows([label, f"{part}, {label}"] for label in ("anger", "fear", "happy", "love", "sadness"))


def write_meld(folder: Path) -> None:
    """A dialogue goes through all seven categories; its numbers begin anew in every file."""
    folder.mkdir(parents=True)
    columns = ["Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID"]
    for part, dialogues in (("train", 2), ("dev", 1)):
        with (folder / f"{part}_sent_emo.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for dialogue in range(dialogues):
                for i, (emotion, text) in enumerate(FEELINGS.items()):
                    said = f"Well, it\x92s {part} {dialogue}, {text}"
                    sentiment = SENTIMENTS.get(emotion, "negative")
                    writer.writerow([i, said, "Ross", emotion, sentiment, dialogue, i])


def write_goemotions(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "labels.txt").write_text("\n".join(EKMAN7.categories), encoding="utf-8")
    for part in ("train", "dev"):
        lines = [f"{part} {text}\t{i}\t{part}{i}" for i, text in enumerate(FEELINGS.values())]
        lines.append(f"{part}, of two minds\u2028about it\t0,5\t{part}7")
        (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_xed(folder: Path) -> None:
    """Enough lines that some of each language validate, and lines that are to be left out."""
    folder.mkdir(parents=True)
    for name, prefix in (("en-annotated", "so"), ("fi-annotated", "no"), ("sv-projections", "ja")):
        lines = [f"{prefix} {i}, {FEELINGS[name_]}\t{n}" for i in range(6) for name_, n in PLUTCHIK.items()]
        lines += [f"{prefix}, only hope\t2, 8", f"{prefix}, fear and hope\t2, 4", "\t5"]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "br-projections.tsv").write_text("que lindo dia\t5\n", encoding="utf-8")
    (folder / "zh-projections.tsv").write_text("多么美好的一天\t5\n", encoding="utf-8")
    for language in ("en", "fi"):
        lines = [f"{i}\t{language} {i}, {FEELINGS['neutral']}" for i in range(20)]
        (folder / f"neu_{language}.txt").write_text("\n".join([*lines, "20\t"]), encoding="utf-8")


def _write_sound(path: Path, hertz: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav(tone(0.3, hertz)))
