"""Synthetic clips with their transcripts: single words, short cuts, long recordings and sentences in many languages."""

from collections.abc import Iterator

import numpy as np

from benchmarks.synthetic_speech import synthesize
from shared.audio.decoder import SAMPLE_RATE, Samples

VOICES = ("en-us", "en+f3", "en-us+m3", "en-gb-scotland+f2")
WORDS = (
    *("yes", "no", "bye", "hello", "thanks", "stop", "please", "okay", "sorry", "great"),
    *("help", "wait", "never", "maybe", "today", "goodbye", "really", "again", "nothing", "wonderful"),
)
SENTENCES = (
    "I have been waiting for an hour and nobody has called me back",
    "my brother called this morning because the train was late",
    "we walked along the river until the sun went down",
    "the doctor said that everything will be fine next week",
)
LANGUAGES = {
    "ar": ("مرحبا كيف حالك اليوم", "أنا سعيد جدا برؤيتك"),
    "de": ("Ich freue mich sehr, dich heute wiederzusehen", "Der Zug kommt morgen um acht Uhr an"),
    "es": ("Estoy muy contento de verte otra vez", "El tren llega mañana a las ocho"),
    "fr": ("Je suis très content de te revoir", "Le train arrive demain à huit heures"),
    "hi": ("मुझे आपसे मिलकर बहुत खुशी हुई", "आज मौसम बहुत अच्छा है"),
    "it": ("Sono molto felice di rivederti dopo tanto tempo", "Il treno arriva domani alle otto"),
    "nl": ("Ik ben heel blij je vandaag weer te zien", "De trein komt morgen om acht uur aan"),
    "pl": ("Bardzo się cieszę, że znowu cię widzę", "Pociąg przyjeżdża jutro o ósmej"),
    "pt": ("Estou muito feliz por te ver outra vez", "O comboio chega amanhã às oito horas"),
    "ru": ("Я очень рад снова тебя видеть", "Поезд приходит завтра в восемь часов"),
    "tr": ("Seni tekrar gördüğüme çok sevindim", "Tren saat sekizde geliyor"),
    "ur": ("مجھے آپ سے مل کر بہت خوشی ہوئی", "آج موسم بہت اچھا ہے"),
}
"""Two sentences in each language, by ISO 639-1 code."""
CUTS = 30
PAUSES_S = (0.3, 0.8, 1.5, 3.0, 6.0)
NOISE_LEVELS = (0.0, 0.0005, 0.003)

Clip = tuple[str, Samples, str, str]
"""The kind of a clip, its samples, its transcript and its language."""


def synthetic_clips() -> Iterator[Clip]:
    """Yields the clips, the same in each run."""
    for number, word in enumerate(WORDS):
        yield "single words", synthesize(f"{word}.", VOICES[number % len(VOICES)]).samples, word, "en"
    yield from _short_cuts()
    for number, level in enumerate(NOISE_LEVELS):
        yield _long_recording(np.random.default_rng(number), level)
    for language, sentences in LANGUAGES.items():
        for sentence in sentences:
            yield f"sentences in {language}", synthesize(sentence, language).samples, sentence, language


def _short_cuts() -> Iterator[Clip]:
    """Yields whole words that are cut out of sentences, 0.3 to 1 s long."""
    rng = np.random.default_rng(0)
    count = 0
    while count < CUTS:
        sentence = SENTENCES[rng.integers(len(SENTENCES))]
        spoken = synthesize(sentence, VOICES[rng.integers(len(VOICES))])
        words = sentence.split()
        first, size = int(rng.integers(len(words) - 4)), int(rng.integers(1, 4))
        start, end = spoken.word_starts[first], spoken.word_starts[first + size]
        if len(spoken.word_starts) == len(words) and 0.3 <= end - start <= 1.0:
            samples = spoken.samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
            yield "short cuts", samples, " ".join(words[first : first + size]), "en"
            count += 1


def _long_recording(rng: np.random.Generator, level: float) -> Clip:
    """Returns sentences of several speeds with pauses of several lengths between them and noise over all."""
    parts: list[Samples] = []
    for number, pause in enumerate(PAUSES_S):
        text = SENTENCES[number % len(SENTENCES)]
        parts += [synthesize(text, VOICES[0], int(rng.integers(120, 190))).samples]
        parts += [np.zeros(round(pause * SAMPLE_RATE), np.float32)]
    samples = np.concatenate(parts)
    text = " ".join(SENTENCES[number % len(SENTENCES)] for number in range(len(PAUSES_S)))
    return "long recordings", (samples + level * rng.standard_normal(samples.size)).astype(np.float32), text, "en"
