"""Small copies of the corpora of texts and dialogues in the layout of their publishers, with invented texts."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from openpyxl import Workbook

from training.data.corpora import dialogues, texts
from training.data.corpora.text_corpus import TextCorpus

Cells = Sequence[object]


def write_text_corpora(folder: Path) -> None:
    """Write all corpora of texts and dialogues."""
    write_brighter(folder / "brighter")
    write_smp2020_ewect(folder / "smp2020_ewect")
    write_kote(folder / "kote")
    for language in ("es", "en"):
        header = ["id", "event", "tweet", "offensive", "emotion"]
        for part in ("train", "dev", "test"):
            path = folder / "emoevent" / "splits" / language / f"{part}.tsv"
            write_table(path, header, [[1, "GameOfThrones", text, "NO", label] for text, label in one(texts.EMOEVENT)])
    write_table(folder / "armanemo" / "train.tsv", None, one(texts.ARMANEMO, 4))
    write_table(folder / "armanemo" / "test.tsv", None, one(texts.ARMANEMO))
    for part in ("train", "valid"):
        rows = [[i, label, text] for i, (text, label) in enumerate(one(texts.UIT_VSMEC))]
        write_table(folder / "uit_vsmec" / f"{part}_nor_811.xlsx", ["", "Emotion", "Sentence"], rows)
    for part in ("train", "val"):
        write_table(folder / "bemoc" / f"{part}.xlsx", ["cleaned", "classes"], one(texts.BEMOC))
        write_table(folder / "red_ro" / f"{part}.csv", ["Tweet", "Emotion"], one(texts.RED_RO))
    write_cedr(folder / "cedr")
    write_multiemotions_it(folder / "multiemotions_it")
    rows = [[i, text, label] for i, (text, label) in enumerate(one(texts.EMOTIONAL_TONE, 4))]
    write_table(folder / "emotional_tone" / "Emotional-Tone-Dataset.csv", ["ID", " TWEET", " LABEL"], rows)
    rows = [[text, number] for i in range(4) for number, text in enumerate(named(texts.BHAAV, i))]
    write_table(folder / "bhaav" / "Bhaav-Dataset.xlsx", ["Sentences", "Annotation"], rows)
    tweets = one(texts.TURKISH_TWEETS, 4)
    write_table(folder / "turkish_tweets" / "TurkishTweets.xlsx", ["Tweet", "Etiket"], tweets)
    write_isear(folder / "isear")
    write_semeval2018_ec(folder / "semeval2018_ec")
    write_dialogues(folder)


def write_dialogues(folder: Path) -> None:
    write_dailydialog(folder / "dailydialog")
    write_xdailydialog(folder / "xdailydialog")
    write_emotionlines(folder / "emotionlines")
    write_emorynlp(folder / "emorynlp")
    for part in ("train", "dev"):
        rows = [[i, f"{part} hello {i}", "hello", text, label] for i, (text, label) in enumerate(chats())]
        write_table(folder / "emocontext" / f"{part}.txt", ["id", "turn1", "turn2", "turn3", "label"], rows)
    write_maia_dqe(folder / "maia_dqe")
    for part in ("train", "dev"):
        turns = [["cleaning/0", "ロボット", "掃除をしてください。", "平静-怒り-平静"]]
        turns += [["cleaning/0", "A君", "後でね。", "悲しみ-平静-悲しみ-平静"]]
        turns += [["cleaning/1", "A君1", f"{part} {label}", f"{label}-{label}-{label}"] for label in naist_labels()]
        header = ["dialogue", "speaker", "utterance", "emotion"]
        write_table(folder / "naist_persuasion" / f"{part}.tsv", header, turns)
    write_cped(folder / "cped")


def one(corpus: TextCorpus, repeats: int = 1) -> list[tuple[str, str]]:
    """A text for each label, or several."""
    return [(text, label) for i in range(repeats) for text, label in zip(named(corpus, i), corpus.labels, strict=True)]


def named(corpus: TextCorpus, number: int) -> list[str]:
    """A text for each label of a corpus."""
    return [f"{label} in {corpus.title} {number}" for label in corpus.labels]


def chats() -> list[tuple[str, str]]:
    return [(text, label) for text, label in one(dialogues.EMOCONTEXT) if label != dialogues.UNLABELLED]


def naist_labels() -> Iterable[str]:
    return dialogues.NAIST_PERSUASION.labels


def write_table(path: Path, header: Sequence[str] | None, rows: Iterable[Cells]) -> None:
    """Write a table in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: list[Cells] = [*([] if header is None else [header]), *rows]
    if path.suffix == ".xlsx":
        workbook = Workbook(write_only=True)
        sheet = workbook.create_sheet()
        for line in lines:
            sheet.append(list(line))
        workbook.save(path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(lines)
    else:
        path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")


def write_brighter(folder: Path) -> None:
    """Rows of none, one and two emotions; some languages have no training part, Afrikaans no surprise."""
    emotions = ["anger", "disgust", "fear", "joy", "sadness", "surprise"]
    for part, codes in (("train", ["afr", "eng"]), ("dev", texts.BRIGHTER_LANGUAGES)):
        for code in codes:
            header = ["id", "text", *(emotions[:-1] if code == "afr" else emotions)]
            marks = [[0] * 6, [1, 0, 1, 0, 0, 0], *([int(i == j) for j in range(6)] for i in range(6))]
            rows = [[i, f"{part}, {code}, {i}", *row[: len(header) - 2]] for i, row in enumerate(marks)]
            write_table(folder / "track_a" / part / f"{code}.csv", header, rows)


def write_smp2020_ewect(folder: Path) -> None:
    """Lists of JSON objects in files that end in `.txt`."""
    for part in ("train/virus_train", "train/usual_train", "eval/usual_eval_labeled"):
        path = folder / f"{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"id": i, "content": text, "label": label} for i, (text, label) in enumerate(one(texts.SMP2020_EWECT))]
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def write_kote(folder: Path) -> None:
    for part in ("train", "val", "test"):
        rows: list[Cells] = [[f"{40_000 + i}", text, i] for i, text in enumerate(named(texts.KOTE, 0))]
        write_table(folder / f"{part}.tsv", None, [*rows, ["40044", f"{part} of two minds", "0,5"]])


def write_cedr(folder: Path) -> None:
    marks = ["[]", "[0]", "[1]", "[2]", "[3]", "[4]", "[1 3]"]
    rows = [[f"Предложение {i} {mark}", mark, "lj"] for i in range(4) for mark in marks]
    write_table(folder / "cedr-main-train.csv", ["text", "labels", "source"], rows)


def write_multiemotions_it(folder: Path) -> None:
    columns = list(texts.MULTIEMOTIONS_LABELS)
    rows: list[Cells] = []
    for i in range(4):
        rows += [[f"neutro {i}", 1, 0, 0, *[0] * len(columns), 0]]
        rows += [[f"{name} {i}", 0, 1, 0, *[int(name == other) for other in columns], 0] for name in columns]
        rows += [[f"{columns[0]}, {columns[-2]} {i}", 0, 1, 0, 1, *[0] * 5, 1, 0, 0]]
    write_table(folder / "MultiEmotions-It.tsv", ["comment", "NEUT", "POS", "NEG", *columns, "SARCASM"], rows)


def write_isear(folder: Path) -> None:
    """Cells with bars between them, as published."""
    folder.mkdir(parents=True)
    lines = [f"11001|1|{label}|{text}" for text, label in one(texts.ISEAR, 4)]
    (folder / "isear.csv").write_text("\n".join(["ID|SEX|Field1|SIT", *lines]) + "\n", encoding="utf-8")


def write_semeval2018_ec(folder: Path) -> None:
    columns = list(texts.SEMEVAL2018_LABELS)
    for part in ("train", "dev", "test-gold"):
        rows: list[Cells] = [["2018-En-0", f"{part}, nothing", *[0] * len(columns)]]
        rows += [["2018-En-1", f"{part}, {name}", *[int(name == other) for other in columns]] for name in columns]
        write_table(folder / f"2018-E-c-En-{part}.txt", ["ID", "Tweet", *columns], rows)


def write_dailydialog(folder: Path) -> None:
    """A dialogue of all labels, and one that lacks a label."""
    for part in ("train", "validation"):
        (folder / part).mkdir(parents=True)
        turns = [f"{part} turn {label} ." for label in dialogues.DAILYDIALOG_NUMBERS.values()]
        lines = ["".join(f"{turn} __eou__ " for turn in turns), "Hello . __eou__ Hello ! __eou__"]
        (folder / part / f"dialogues_{part}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        numbers = " ".join(dialogues.DAILYDIALOG_NUMBERS)
        (folder / part / f"dialogues_emotion_{part}.txt").write_text(f"{numbers} \n0 \n", encoding="utf-8")


def write_xdailydialog(folder: Path) -> None:
    """Files of all dialogues, with one file of labels for all languages; the English one is not read."""
    folder.mkdir(parents=True)
    for code in ("De", "En", "It", "Zh"):
        lines = [f"{code} eins {i} __eou__ {code} zwei {i} __eou__" for i in range(20)]
        (folder / f"dialogues_text_{code}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "dialogues_emotion.txt").write_text("".join(f"0 {1 + i % 6}\n" for i in range(20)), encoding="utf-8")


EMOTIONLINES_TURNS = [
    {"speaker": "Phoebe", "utterance": "Oh no!", "emotion": "non-neutral", "annotation": "0002120"},
    {"speaker": "Monica", "utterance": "What?", "emotion": "surprise", "annotation": "1000130"},
    {"speaker": "Ross", "utterance": "Nine.", "emotion": "neutral", "annotation": "5000000"},
    *(
        {"speaker": "Joey", "utterance": label, "emotion": label, "annotation": f"{5 * 10 ** (6 - i):07}"}
        for i, label in enumerate(dialogues.EKMAN_LABELS)
    ),
]


def write_emotionlines(folder: Path) -> None:
    (folder / "Friends").mkdir(parents=True)
    for part in ("train", "dev"):
        path = folder / "Friends" / f"friends_{part}.json"
        path.write_text(json.dumps([EMOTIONLINES_TURNS, EMOTIONLINES_TURNS[1:]]), encoding="utf-8")


EMORY_TURNS = [
    {"speakers": ["Rachel Green"], "transcript": "Coffee.", "emotion": "Neutral"},
    {"speakers": ["Ross Geller", "Joey Tribbiani"], "transcript": "Yes!", "emotion": "Joyful"},
    {"speakers": ["Rachel Green"], "transcript": "Fine.", "emotion": "Peaceful"},
    *({"speakers": ["Ross Geller"], "transcript": label, "emotion": label} for label in dialogues.EMORYNLP.labels),
]


def write_emorynlp(folder: Path) -> None:
    (folder / "json").mkdir(parents=True)
    for part, season in (("trn", 1), ("dev", 2)):
        scenes = [{"scene_id": f"s0{season}_e02_c0{i}", "utterances": EMORY_TURNS} for i in (1, 2)]
        episodes = {"episodes": [{"episode_id": f"s0{season}_e02", "scenes": scenes}]}
        (folder / "json" / f"emotion-detection-{part}.json").write_text(json.dumps(episodes), encoding="utf-8")


def write_maia_dqe(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("de_client_02", "pt_br_client_04"):
        turns = [
            {"floor": "inbound", "text_src": [f"{name} eins.", "Zwei."], "Emotion": [5, 2]},
            {"floor": "outbound", "text_src": ["Thank you."], "Emotion": [0]},
            {"floor": "inbound", "text_src": [*dialogues.MAIA_LABELS], "Emotion": list(range(8))},
        ]
        found = [{"id": f"{name} {i}", "turns": turns} for i in range(20)]
        (folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")


def write_cped(folder: Path) -> None:
    header = ["TV_ID", "Dialogue_ID", "Utterance_ID", "Speaker", "Gender", "Emotion", "DA", "Utterance"]
    for part, show in (("train", "01"), ("valid", "32"), ("test", "40")):
        turns = enumerate(dialogues.CPED.labels)
        rows = [
            [show, f"{show}_000", f"{show}_000_{i:03}", "其他", "unknown", label, "question", f"怎么了 {label}"]
            if i % 2
            else [show, f"{show}_000", f"{show}_000_{i:03}", "戴娜", "female", label, "answer", f"好 {label}"]
            for i, label in turns
        ]
        write_table(folder / f"{part}_split.csv", header, rows)
