"""TESS: two Canadian women, one carrier sentence with 200 words, seven acted emotions.

Pichora-Fuller and Dupuis 2020, https://doi.org/10.5683/SP2/E8H2MF, CC BY-NC-ND 4.0. Files are named
`SPEAKER_word_emotion`, in a folder for each speaker and emotion or all in one folder.
"""

from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Split, Utterance, ekman_target, find_recordings, implied_valence, look_up

LICENCE = "CC BY-NC-ND 4.0"
SOURCE = "https://doi.org/10.5683/SP2/E8H2MF"
LABELS = {
    "angry": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "joy",
    "neutral": "neutral",
    "ps": "surprise",  # pleasant surprise
    "sad": "sadness",
}
SPLITS = {"OAF": Split.train, "YAF": Split.validation}
"""By speaker: the older woman trains, the younger validates. There is no published split."""

MISNAMED = {"OA": "OAF"}
"""The published file `OA_bite_neutral.wav` lacks a letter."""


def load(folder: Path) -> Iterator[Utterance]:
    """Yields all recordings below the folder, WAV or FLAC.

    Raises:
        CorpusMissing: it is not in `folder`.
        ValueError: a file's name does not follow the corpus's scheme.
    """
    for path in find_recordings(folder, "TESS", SOURCE):
        speaker, _, rest = path.stem.partition("_")
        speaker = MISNAMED.get(speaker, speaker)
        word, _, emotion = rest.rpartition("_")
        if speaker not in SPLITS or not word:
            raise ValueError(
                f"{path.name} is not named SPEAKER_word_emotion, with {' or '.join(SPLITS)} as the speaker"
            )
        category = look_up(emotion.lower(), LABELS, path.name)
        yield Utterance(
            id=path.stem,
            corpus="tess",
            language="en",
            split=SPLITS[speaker],
            target=ekman_target([category]),
            valence=1.0 if category == "surprise" else implied_valence([category]),
            group=speaker,
            label_name=emotion.lower(),
            text=f"Say the word {word}.",
            audio=path,
            speaker=speaker,
            gender="female",
        )
