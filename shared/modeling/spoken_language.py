"""The spoken language of a clip, from what Whisper finds in each stretch of it and from the session's earlier turns."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

LanguageProbabilities = Mapping[str, float]
"""The probability of each language, by Whisper's code."""

MIN_PROBABILITY = 1e-4
"""Lower probabilities count as this one, so that one stretch of laughter cannot rule out a language."""
PRIOR_ODDS = 4.0
"""How many times likelier the language of one earlier turn is than a language that no earlier turn has."""
MIN_SWITCH_S = 1.0
"""Speech in which another language than the clip's is believed, in seconds."""
MIN_SWITCH_PROBABILITY = 0.7


def combine(stretches: Sequence[tuple[float, LanguageProbabilities]], earlier: Sequence[str] = ()) -> dict[str, float]:
    """Returns the probability of each language, given all stretches of speech.

    The log-probabilities are added. Each stretch counts by its length, and the longest counts once, so that a single
    stretch without earlier turns keeps its own probabilities.

    Args:
        stretches: for each its length in seconds and the probabilities that Whisper finds in it; at least one.
        earlier: the languages of the session's earlier turns.
    """
    longest = max(seconds for seconds, _ in stretches)
    counts = Counter(earlier)
    scores = {
        language: math.log(1 + PRIOR_ODDS * counts[language])
        + sum(seconds / longest * math.log(max(MIN_PROBABILITY, of.get(language, 0.0))) for seconds, of in stretches)
        for language in {language for _, of in stretches for language in of}
    }
    highest = max(scores.values())
    weights = {language: math.exp(score - highest) for language, score in scores.items()}
    total = sum(weights.values())
    return {language: weight / total for language, weight in weights.items()}


def likeliest(probabilities: LanguageProbabilities) -> tuple[str, float]:
    """Returns the most probable language with its probability."""
    return max(probabilities.items(), key=lambda item: item[1])


def stretch_language(seconds: float, probabilities: LanguageProbabilities, language: str) -> str:
    """Returns the language of one stretch of a clip: the clip's, unless the stretch is certainly in another.

    Args:
        seconds: length of the stretch.
        probabilities: what Whisper finds in it.
        language: the clip's language.
    """
    own, probability = likeliest(combine([(seconds, probabilities)], [language]))
    return own if seconds >= MIN_SWITCH_S and probability >= MIN_SWITCH_PROBABILITY else language
