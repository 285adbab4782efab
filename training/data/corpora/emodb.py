"""Emo-DB: ten German actors, ten sentences, seven acted emotions.

Burkhardt et al. 2005, http://emodb.bilderbar.info, CC0 1.0. Files are named by speaker, sentence, emotion and version,
such as `03a01Fa`. Boredom has no category in `EKMAN7`.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from training.data.utterance import Gender, Split, Utterance, ekman_target, find_recordings, implied_valence, look_up

LICENCE = "CC0 1.0"
SOURCE = "http://emodb.bilderbar.info (download.zip)"
EMOTIONS = {
    "A": "anxiety",
    "E": "disgust",
    "F": "happiness",
    "L": "boredom",
    "N": "neutral",
    "T": "sadness",
    "W": "anger",
}
"""By the first letter of the German word for the emotion."""

LABELS = {
    "anxiety": "fear",
    "disgust": "disgust",
    "happiness": "joy",
    "boredom": None,
    "neutral": "neutral",
    "sadness": "sadness",
    "anger": "anger",
}
SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
GENDERS: Mapping[str, Gender] = {
    "03": "male",
    "08": "female",
    "09": "female",
    "10": "male",
    "11": "male",
    "12": "male",
    "13": "female",
    "14": "female",
    "15": "male",
    "16": "female",
}
SPLITS = {"12": Split.validation, "13": Split.validation, "15": Split.test, "16": Split.test}
"""By speaker: a man and a woman validate, a man and a woman test, the other six train. There is no published split."""

NAME = re.compile(r"(\d\d)([ab]\d\d)([A-Z])[a-z]?")


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the recordings `wav/03a01Fa.wav` ...

    Raises:
        CorpusMissing: it is not in `folder`.
        ValueError: a file's name does not follow the corpus's scheme.
    """
    for path in find_recordings(folder, "Emo-DB", SOURCE):
        name = NAME.fullmatch(path.stem)
        if name is None:
            raise ValueError(
                f"{path.name} is not named by speaker, sentence, emotion and version as Emo-DB's files are (03a01Fa)"
            )
        speaker, sentence, code = name.groups()
        emotion = look_up(code, EMOTIONS, path.name)
        yield Utterance(
            id=path.stem,
            corpus="emodb",
            language="de",
            split=SPLITS.get(speaker, Split.train),
            target=ekman_target([LABELS[emotion]]),
            valence=implied_valence([LABELS[emotion]]),
            group=speaker,
            label_name=emotion,
            text=look_up(sentence, SENTENCES, path.name),
            audio=path,
            speaker=speaker,
            gender=look_up(speaker, GENDERS, path.name),
        )
