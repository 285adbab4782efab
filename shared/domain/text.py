"""Text and names that Postgres can store."""

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, StringConstraints


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("the text holds a null character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text is not valid Unicode") from None
    return text


_BLANK_LETTERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Characters that Unicode counts as letters or symbols and that have no glyph: the fillers of Hangul, an empty Braille
cell."""
_LINE_CATEGORIES = ("Cc", "Zl", "Zp")


def is_blank(text: str) -> bool:
    """Return whether a text has no visible character: only spaces, controls, direction marks, zero-width characters."""
    return not any(map(_is_visible, text))


def _is_visible(char: str) -> bool:
    category = unicodedata.category(char)
    # Characters that are newer than Python's tables have the category Cn.
    return (category[0] in "LNPS" or category == "Cn") and char not in _BLANK_LETTERS


def _is_one_line(name: str) -> str:
    if is_blank(name):
        raise ValueError("the name has no visible character")
    for char in name:
        if unicodedata.category(char) in _LINE_CATEGORIES:
            raise ValueError(f"the name holds the control character {char!r}: send it on one line")
    return name


Text = Annotated[str, AfterValidator(_storable)]
"""Text without null characters and lone surrogates, which Postgres cannot store."""
Reference = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_storable)]
"""A text of 1 to 200 characters."""
Name = Annotated[Reference, AfterValidator(_is_one_line)]
"""A name of 1 to 200 characters, at least one of them visible, on one line."""
