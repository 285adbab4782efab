"""Warnings: what a client should know about an analysis that succeeded."""

from dataclasses import dataclass
from enum import StrEnum


class WarningCode(StrEnum):
    """The kinds of warnings. They are stable, so that programs can act on them.

    Attributes:
        audio_skipped: a part of the recording is damaged, and was replaced by silence or left out.
        audio_gaps: the time stamps of the recording leave gaps, which count as silence.
        tracks_mixed: the file has several audio tracks, which were mixed.
        opposite_phase: the channels of the recording are in opposite phase, so that only the loudest was used.
        channels_alike: channels of the recording hold the same, so that only the first of them was used.
        crosstalk_removed: a channel of the recording also holds another channel more quietly, which was removed.
        no_speech_found: there is sound in the audio, but nobody speaks.
        text_unread: some or all letters of the text are of a script that the text encoder does not know.
        transcript_doubtful: speech recognition is unsure of the words, so that the text counts less, or not at all.
    """

    audio_skipped = "audio_skipped"
    audio_gaps = "audio_gaps"
    tracks_mixed = "tracks_mixed"
    opposite_phase = "opposite_phase"
    channels_alike = "channels_alike"
    crosstalk_removed = "crosstalk_removed"
    no_speech_found = "no_speech_found"
    text_unread = "text_unread"
    transcript_doubtful = "transcript_doubtful"


# A standard dataclass, because the child process that decodes recordings does not import pydantic.
@dataclass(frozen=True)
class AnalysisWarning:
    """A warning about one analysis.

    Attributes:
        code: the kind of warning.
        message: one plain sentence for people, with seconds where it concerns a place in the recording.
    """

    code: WarningCode
    message: str
