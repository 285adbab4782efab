"""EmoSpeech India: single commands in English and Hindi by 105 known speakers, four acted emotions.

Banga et al. 2019, "Indian EmoSpeech Command Dataset", https://arxiv.org/abs/1910.13801, version 0.1, CC BY-NC-SA 4.0.
Files are named by keyword, environment, emotion, time and the user's hash, in a folder for each place of recording.
Recordings of background noise and of unknown users are left out: they cannot be split by speaker.
"""

from collections.abc import Iterator
from pathlib import Path

from training.data.utterance import Utterance, ekman_target, find_recordings, implied_valence, look_up, split_by_digest

LICENCE = "CC BY-NC-SA 4.0"
SOURCE = "https://github.com/RakshakTeam/emospeech-dataset-v1"
LABELS = {"happy": "joy", "angry": "anger", "fearful": "fear", "calm": "neutral"}
LANGUAGES = {"help": "en", "bacho": "hi", "stop": "en", "no": "en", "go": "en", "yes": "en", "unknown": "und"}
"""By keyword; `unknown` is any other word."""

UNKNOWN_USER = "d14a028c2a3a2bc9476102bb288234c415a2b01f828ea62ac5b3e42f"
BACKGROUND, OTHER_WORD = "background", "unknown"


def load(folder: Path) -> Iterator[Utterance]:
    """Yields the spoken commands of known users; a tenth of the users validates. There is no published split.

    Raises:
        CorpusMissing: it is not in `folder`.
        ValueError: a file's name does not follow the corpus's scheme.
    """
    for path in find_recordings(folder, "EmoSpeech India", SOURCE):
        fields = path.stem.split("-")
        if len(fields) != 5:
            raise ValueError(f"{path.name} is not named KEYWORD-ENVIRONMENT-EMOTION-TIME-USER as EmoSpeech's files are")
        keyword, _, emotion, _, user = fields
        if keyword == BACKGROUND or emotion == "None" or user == UNKNOWN_USER:
            continue
        category = look_up(emotion.lower(), LABELS, path.name)
        yield Utterance(
            id=path.stem,
            corpus="emospeech_india",
            language=look_up(keyword, LANGUAGES, path.name),
            split=split_by_digest(user),
            target=ekman_target([category]),
            valence=implied_valence([category]),
            group=user,
            label_name=emotion.lower(),
            text=None if keyword == OTHER_WORD else keyword,
            audio=path,
            speaker=user,
        )
