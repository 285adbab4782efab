"""Loops of a decoder: text that repeats itself although nobody said it so often.

Whisper's usual failure on short or unclear audio is to repeat a word or a sentence until it is stopped. Compression
shows that in long texts (Radford et al. 2022, section 4.5). In short texts, the speed does: nobody speaks so fast.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

MAX_COMPRESSION = 2.4
"""Whisper's own limit for the length of a text divided by its compressed length."""
MAX_TOKENS_PER_SECOND = 25
"""Above the fastest speech, also in scripts that need several tokens for a syllable."""
MIN_REPEATS = 3
"""In speech of a possible speed. A person may well say something twice."""
MAX_UNIT = 40
"""Longest repeated sequence that is looked for, in tokens."""


class Repetition(NamedTuple):
    """A sequence that occurs several times in a row, within a longer sequence.

    Attributes:
        start: where it first starts.
        unit: the length of one occurrence.
        length: the length of all occurrences, the last of which may be cut short.
    """

    start: int
    unit: int
    length: int


def find_loop(tokens: Sequence[int], seconds: float, endless: bool = False) -> Repetition | None:
    """Returns the repetition that makes up most of a text, unless somebody may have said the text like that.

    Args:
        tokens: the text, in tokens.
        seconds: how long the audio is.
        endless: whether the decoder was stopped before it ended the text.
    """
    too_fast = len(tokens) > MAX_TOKENS_PER_SECOND * seconds
    if not (too_fast or endless):
        return None
    found = find_repetition(tokens, 2 if too_fast else MIN_REPEATS)
    return found if found is not None and 2 * found.length >= len(tokens) else None


def find_repetition(items: Sequence[int], min_repeats: int = MIN_REPEATS) -> Repetition | None:
    """Returns the longest repetition, or None. `min_repeats` is how often something must at least occur in a row."""
    best: Repetition | None = None
    for unit in range(1, min(MAX_UNIT, len(items) // min_repeats) + 1):
        equal = 0
        for place in range(unit, len(items) + 1):
            if place < len(items) and items[place] == items[place - unit]:
                equal += 1
                continue
            length = equal + unit
            if length >= min_repeats * unit and (best is None or length > best.length):
                best = Repetition(place - length, unit, length)
            equal = 0
    return best


def compresses(text: str) -> bool:
    """Whether a text can be compressed so well that it must repeat itself, which people do too."""
    encoded = text.encode()
    return len(encoded) > MAX_COMPRESSION * len(zlib.compress(encoded))
