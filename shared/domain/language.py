"""Languages: tags as callers write them (BCP 47, RFC 5646), and Whisper's codes for them."""

import re
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

MAX_TAG_LENGTH = 35
"""RFC 5646, section 4.4.1: a shorter limit may cut registered tags."""

_TAG = re.compile(
    r"(?P<language>[a-z]{2,3})"
    r"(?:-(?P<extended>[a-z]{3}))?"
    r"(?:-(?P<script>[a-z]{4}))?"
    r"(?:-(?P<region>[a-z]{2}|\d{3}))?"
    r"(?P<rest>"
    r"(?:-(?:[a-z0-9]{5,8}|\d[a-z0-9]{3}))*"  # variants
    r"(?:-[a-wyz0-9](?:-[a-z0-9]{2,8})+)*"  # extensions
    r"(?:-x(?:-[a-z0-9]{1,8})+)?"  # private use
    r")",
    re.IGNORECASE,
)

_WHISPER_CODES = {
    # Whisper's own deviations, and codes that were withdrawn or are used beside the ISO 639-1 code.
    "jv": "jw",
    "nb": "no",
    "fil": "tl",
    "iw": "he",
    "in": "id",
    "ji": "yi",
    "mo": "ro",
    "sh": "sr",
    # Members of macrolanguages (ISO 639-3) that Whisper knows under the macrolanguage.
    "cmn": "zh",
    "arb": "ar",
    "pes": "fa",
    "prs": "fa",
    "zsm": "ms",
    "swh": "sw",
    "ekk": "et",
    "lvs": "lv",
    "khk": "mn",
    "nob": "no",
    "nno": "nn",
    "als": "sq",
    "plt": "mg",
    "azj": "az",
    "uzn": "uz",
    "pbu": "ps",
    "pbt": "ps",
    "npi": "ne",
    "ydd": "yi",
}

_STANDARD_CODES = {"jw": "jv"}
"""ISO 639-1 for Whisper's own codes."""


def normalize_tag(tag: str) -> str:
    """Returns a BCP 47 tag as RFC 5646 formats it: `en`, `en-US`, `zh-Hant-TW`.

    Args:
        tag: in any case; underscores are read as hyphens.

    Raises:
        ValueError: this is not a tag of a language.
    """
    parts = _TAG.fullmatch(tag.replace("_", "-"))
    if parts is None or len(parts[0]) > MAX_TAG_LENGTH:
        raise ValueError(f"{tag!r} is not a BCP 47 language tag, such as en, pt-BR or zh-Hant-TW")
    subtags = [
        parts["language"].lower(),
        (parts["extended"] or "").lower(),
        (parts["script"] or "").title(),
        (parts["region"] or "").upper(),
        parts["rest"].lower().lstrip("-"),
    ]
    return "-".join(filter(None, subtags))


def whisper_code(tag: str) -> str:
    """Returns the code under which Whisper would know the language of a tag. Not every Whisper model knows it."""
    language, *others = tag.lower().replace("_", "-").split("-")
    # An extended language subtag names the language itself: `zh-yue` is Cantonese.
    if others and re.fullmatch("[a-z]{3}", others[0]):
        language = others[0]
    return _WHISPER_CODES.get(language, language)


def standard_code(code: str) -> str:
    """Returns the ISO 639 code of a language that Whisper named."""
    return _STANDARD_CODES.get(code, code)


LanguageTag = Annotated[
    str,
    AfterValidator(normalize_tag),
    WithJsonSchema({"type": "string", "maxLength": MAX_TAG_LENGTH, "examples": ["en", "pt-BR", "zh-Hant-TW"]}),
]
"""A BCP 47 tag, accepted in any case and stored as RFC 5646 formats it."""
