"""Small copies of the corpora in the layout of their publishers, with invented texts and synthetic audio."""

import csv
import json
from pathlib import Path

from shared.domain.emotion import EKMAN7
from tests.audio_clips import encoded, tone, wav
from tests.training.text_corpus_samples import write_text_corpora

UNKNOWN_USER = "d14a028c2a3a2bc9476102bb288234c415a2b01f828ea62ac5b3e42f"
"""The user's hash in names of recordings of EmoSpeech India by unknown users."""

RAVDESS_ACTORS = (1, 2, 19, 21)
"""Two actors train, one validates, one tests."""

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
"""Speakers of the corpus: those that validate, each with its one label, and four that train."""

TEXTS = {
    "anger": "leave me alone now",
    "disgust": "that smells so bad",
    "fear": "there is something out there",
    "joy": "what a lovely day",
    "neutral": "the train is at nine",
    "sadness": "he will never be back",
    "surprise": "i did not see that coming",
}
IEMOCAP_LABELS = ("neu", "ang", "hap", "exc", "sad", "fru", "xxx")
SENTIMENTS = {"joy": "positive", "neutral": "neutral", "surprise": "positive"}
PLUTCHIK = {"anger": 1, "disgust": 3, "fear": 4, "joy": 5, "sadness": 6, "surprise": 7}


def write_data(folder: Path) -> Path:
    """Write all corpora and return the folder."""
    write_ravdess(folder / "ravdess")
    write_urdu(folder / "urdu_latif")
    write_meld(folder / "meld")
    write_goemotions(folder / "goemotions_ekman")
    write_xed(folder / "xed")
    write_tess(folder / "tess")
    write_emot(folder / "indonlu_emot")
    write_crema_d(folder / "crema_d")
    write_savee(folder / "savee")
    write_emodb(folder / "emodb")
    write_urduser(folder / "urduser")
    write_punjabi_rasa(folder / "punjabi_rasa")
    write_shemo(folder / "shemo")
    write_iitkgp_sehsc(folder / "iitkgp_sehsc")
    write_indonesian(folder / "indonesian")
    write_iemocap(folder / "iemocap")
    write_ased(folder / "ased")
    write_emospeech_india(folder / "emospeech_india")
    write_nemo(folder / "nemo")
    write_turev(folder / "turev")
    write_selvas_emotional(folder / "selvas_emotional")
    write_baved(folder / "baved")
    write_text_corpora(folder)
    return folder


def write_ravdess(folder: Path) -> None:
    """A clip for each actor and emotion, and a song, which is not speech."""
    for actor in RAVDESS_ACTORS:
        for emotion in range(1, 9):
            name = f"03-01-{emotion:02}-01-{1 + emotion % 2:02}-01-{actor:02}"
            _write_tone(folder / f"Actor_{actor:02}" / f"{name}.wav", 60 * emotion + actor)
    _write_tone(folder / "Actor_01" / "03-02-03-01-01-01-01.wav", 440)


def write_urdu(folder: Path) -> None:
    for number, (speaker, label) in enumerate(URDU_SPEAKERS.items(), start=1):
        _write_tone(folder / label / f"{speaker}_F{number}_{label[0]}{number:02}.wav", 100 + 20 * number)


def write_tess(folder: Path) -> None:
    for speaker in ("OAF", "YAF"):
        for number, emotion in enumerate(("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")):
            _write_tone(folder / f"{speaker}_{emotion}" / f"{speaker}_back_{emotion}.wav", 120 + 20 * number)


def write_emot(folder: Path) -> None:
    folder.mkdir(parents=True)
    for part in ("train", "valid"):
        with (folder / f"{part}_preprocess.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "tweet"])
            writer.writerows([label, f"{part}, {label}"] for label in ("anger", "fear", "happy", "love", "sadness"))


def write_meld(folder: Path) -> None:
    """Dialogues of all seven categories; the numbers of dialogues restart in every file."""
    folder.mkdir(parents=True)
    columns = ["Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID"]
    columns += ["Season", "Episode", "StartTime", "EndTime"]
    for part, dialogues in (("train", 2), ("dev", 1)):
        with (folder / f"{part}_sent_emo.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for dialogue in range(dialogues):
                for i, (emotion, text) in enumerate(TEXTS.items()):
                    line = f"Well, it\x92s {part} {dialogue}, {text}"
                    sentiment = SENTIMENTS.get(emotion, "negative")
                    speaker = "The Interviewer" if i % 2 else "Ross"
                    times = ["00:16:16,059", "00:16:21,731"]
                    writer.writerow([i, line, speaker, emotion, sentiment, dialogue, i, 8, 20 + dialogue, *times])


def write_goemotions(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "labels.txt").write_text("\n".join(EKMAN7.categories), encoding="utf-8")
    for part in ("train", "dev"):
        lines = [f"{part} {text}\t{i}\t{part}{i}" for i, text in enumerate(TEXTS.values())]
        lines.append(f"{part}, of two minds\u2028about it\t0,5\t{part}7")
        (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_xed(folder: Path) -> None:
    """Enough lines that some of each language validate, and lines that the loader leaves out."""
    folder.mkdir(parents=True)
    for name, prefix in (("en-annotated", "so"), ("fi-annotated", "no"), ("sv-projections", "ja")):
        lines = [f"{prefix} {i}, {TEXTS[name_]}\t{n}" for i in range(6) for name_, n in PLUTCHIK.items()]
        lines += [f"{prefix}, only hope\t2, 8", f"{prefix}, fear and hope\t2, 4", "\t5"]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "br-projections.tsv").write_text("que lindo dia\t5\n", encoding="utf-8")
    (folder / "zh-projections.tsv").write_text("多么美好的一天\t5\n", encoding="utf-8")
    for language in ("en", "fi"):
        lines = [f"{i}\t{language} {i}, {TEXTS['neutral']}" for i in range(20)]
        (folder / f"neu_{language}.txt").write_text("\n".join([*lines, "20\t"]), encoding="utf-8")


def write_crema_d(folder: Path) -> None:
    """An actor who trains, one who validates and one who tests."""
    folder.mkdir(parents=True)
    rows = ["ActorID,Age,Sex,Race,Ethnicity"]
    for actor, sex in ((1001, "Male"), (1074, "Female"), (1091, "Female")):
        rows.append(f"{actor},51,{sex},Caucasian,Not Hispanic")
        for number, emotion in enumerate(("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")):
            _write_tone(folder / "AudioWAV" / f"{actor}_DFA_{emotion}_XX.wav", 120 + 20 * number)
    (folder / "VideoDemographics.csv").write_text("\n".join(rows), encoding="utf-8")


def write_savee(folder: Path) -> None:
    for speaker in ("DC", "JE", "JK", "KL"):
        for number, emotion in enumerate(("a", "d", "f", "h", "n", "sa", "su")):
            _write_tone(folder / "AudioData" / speaker / f"{emotion}01.wav", 90 + 20 * number)


def write_emodb(folder: Path) -> None:
    for speaker in ("03", "08", "12", "13", "15", "16"):
        for number, emotion in enumerate("AEFLNTW"):
            _write_tone(folder / "wav" / f"{speaker}a01{emotion}a.wav", 110 + 20 * number)


def write_urduser(folder: Path) -> None:
    """Three actors, and the texts of the first one's clips."""
    emotions = ("Angry", "Fear", "Boredom", "Disgust", "Happy", "Neutral", "Sad")
    for actor, sex in ((1, 0), (4, 0), (10, 1)):
        for number, emotion in enumerate(emotions, start=1):
            _write_tone(folder / emotion / f"{actor}_{sex}_{number}_01.wav", 100 + 20 * number)
    rows = [["تشریح", "جذبات", "فائل کا نام"]]
    rows += [["آپ کہاں ہیں", emotion, f"1_0_{number}_01.wav"] for number, emotion in enumerate(emotions, start=1)]
    with (folder / "UrSEC_Description.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(rows)


def write_punjabi_rasa(folder: Path) -> None:
    """Enough clips that some of the training part validate, and the texts of the test part."""
    for part, count in (("train", 8), ("test", 1)):
        for number, emotion in enumerate(("angry", "happy", "neutral", "sad")):
            inner = folder / "punjabi_emotional_speech" / part / emotion
            names = [f"PAN_{'FM'[i % 2]}_{emotion.upper()}_{i:05}.wav" for i in range(count)]
            for name in names:
                _write_tone(inner / "audio" / name, 130 + 20 * number)
            if part == "test":
                lines = [f"{name}|ਤੁਸੀਂ ਕਿੱਥੇ ਹੋ|4.1" for name in names]
                (inner / "metadata.txt").write_text("\n".join(lines), encoding="utf-8")


def write_shemo(folder: Path) -> None:
    """Three speakers, one of whom has texts."""
    for speaker in ("F01", "M09", "F10"):
        for number, emotion in enumerate("AFHNSW"):
            name = f"{speaker}{emotion}01.wav"
            _write_tone(folder / ("female" if speaker[0] == "F" else "male") / name, 100 + 20 * number)
    rows = [{"id": f"F01{emotion}01", "transcript": "\ufeffدیگر", "ipa": "digar"} for emotion in "AFHNSW"]
    (folder / "shemo.json").write_text(json.dumps(rows), encoding="utf-8")


def write_iitkgp_sehsc(folder: Path) -> None:
    """Three speakers, one of them with the wrong number, as published."""
    emotions = ("anger", "disgust", "fear", "happy", "neutral", "sadness", "sarcastic", "surprise")
    for speaker in (71, 4, 5):
        for number, emotion in enumerate(emotions):
            name = f"{speaker}.1.{emotion}-1.wav"
            _write_tone(folder / f"{speaker}" / "session1" / emotion / name, 100 + 20 * number)


def write_indonesian(folder: Path) -> None:
    """Enough clips that some validate, and an unlabelled test clip of the competition."""
    for number, emotion in enumerate(("marah", "jijik", "takut", "bahagia", "netral", "sedih")):
        for i in range(5):
            name = f"2_{10 * number + i:05}_{emotion}_{'sedang' if i else 'no_data'}.wav"
            _write_tone(folder / "train" / name, 100 + 20 * number)
    _write_tone(folder / "test" / "test544.wav", 300)


def write_iemocap(folder: Path) -> None:
    """One dialogue per session, its turns out of order as in the release."""
    for session in range(1, 6):
        dialogue, root = f"Ses{session:02}F_impro01", folder / f"Session{session}"
        turns = [(f"{dialogue}_{'FM'[i % 2]}{i:03}", label) for i, label in enumerate(IEMOCAP_LABELS)]
        for folder_ in ("EmoEvaluation", "transcriptions"):
            (root / "dialog" / folder_).mkdir(parents=True)
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for i, (turn, label) in reversed(list(enumerate(turns))):
            lines += [f"[{i}.5000 - {i + 1}.2500]\t{turn}\t{label}\t[{1 + i % 5}.0000, 2.5000, 2.0000]"]
            lines += ["C-E2:\tNeutral;\t()", "A-E3:\tval 3; act 2; dom  2;\t()", ""]
            _write_tone(root / "sentences" / "wav" / dialogue / f"{turn}.wav", 100 + 20 * i)
        (root / "dialog" / "EmoEvaluation" / f"{dialogue}.txt").write_text("\n".join(lines), encoding="utf-8")
        lines = [f"{turn} [{i:03}.5000-{i + 1:03}.2500]: Turn {i}." for i, (turn, _) in enumerate(turns)]
        (root / "dialog" / "transcriptions" / f"{dialogue}.txt").write_text("\n".join(lines), encoding="utf-8")


def write_ased(folder: Path) -> None:
    """Two speakers who train and one who validates."""
    emotions = {"01Neutral": "n1", "02Fearful": "f2", "03Happy": "h3", "04Sad": "S4", "05Angry": "a5"}
    for speaker, sex in ((1, 1), (2, 2), (15, 1)):
        for number, (label, code) in enumerate(emotions.items()):
            name = f"{code}-01-02-{sex:02}-{speaker:02}.wav"
            _write_tone(folder / label / name, 100 + 20 * number)


USERS = 21
"""Enough that some of them validate."""


def write_emospeech_india(folder: Path) -> None:
    """Users who train and validate, an unknown user, and background noise."""
    users = [f"{number:056x}" for number in range(USERS)]
    for i, user in enumerate(users):
        emotion = ("Happy", "angry", "fearful", "calm")[i % 4]
        keyword = ("bacho", "help", "unknown")[i % 3]
        _write_tone(folder / "webservice" / f"{keyword}-safe-{emotion}-1562996360436-{user}.wav", 100 + 10 * i)
    for name in (f"yes-safe-happy-1-{UNKNOWN_USER}", f"background-safe-None-2-{users[0]}"):
        _write_tone(folder / "metro" / f"{name}.wav", 300)


def write_nemo(folder: Path) -> None:
    """One speaker who trains and one who validates, and the published table of texts."""
    rows = ["file_id\temotion\traw_text\tspeaker_id"]
    for speaker in ("EB0", "TP0"):
        for number, emotion in enumerate(("anger", "fear", "happiness", "neutral", "sadness", "surprised")):
            name = f"{speaker}_{emotion}_{number}.wav"
            _write_tone(folder / "samples" / name, 100 + 20 * number)
            rows.append(f"{name}\t{emotion}\tLubię czytać.\t{speaker}")
    (folder / "data.tsv").write_text("\n".join(rows), encoding="utf-8")


def write_turev(folder: Path) -> None:
    for speaker in (1157, 6783):
        for number, (label, code) in enumerate({"Angry": "kz", "Calm": "sk", "Happy": "mt", "Sad": "hl"}.items()):
            _write_tone(folder / "Sound Source" / label / f"{speaker}_{code}_acik.wav", 100 + 20 * number)


def write_selvas_emotional(folder: Path) -> None:
    """A woman who trains and a man who validates, with the published texts of hers."""
    for speaker in ("nea", "neo"):
        inner = folder / "emotional-to-emotional" / speaker
        for number in (1, 101, 201, 400):
            _write_tone(inner / "wav" / f"{speaker}{number:05}.wav", 100 + number / 4)
            if speaker == "nea":
                (inner / "script").mkdir(exist_ok=True)
                (inner / "script" / f"{speaker}{number:05}.txt").write_text(f"문장 {number}\n", encoding="utf-8")


def write_baved(folder: Path) -> None:
    """A speaker who trains and one who validates, and the one whose clips are another's; as Ogg."""
    for speaker in ("0-m-21", "54-f-19", "53-m-20"):
        for level in range(3):
            path = folder / "4" / f"{speaker}-4-{level}-{level}.ogg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded("opus", tone(0.3, 100 + 40 * level)))


def _write_tone(path: Path, hertz: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav(tone(0.3, hertz)))
