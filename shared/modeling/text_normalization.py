"""Text normalization: how the text of a turn is written before it is tokenized, in training and in service alike.

Chat programs, web forms and recognisers write the same words in many ways: with markup, links, invisible characters,
spaces before punctuation, or letters that are replaced by stars. Text encoders learn from plain writing. So that both
are read alike, `normalize_text` returns the plain writing. Ordinary text stays as it is.
"""

import html
import re
import unicodedata
from collections.abc import Callable

MAX_PASSES = 4
"""Markup may hold escaped markup. What is left after so many passes loses the characters that markup is made of."""
LINK = "link"
"""Stands for a text that holds nothing but links and addresses."""

_ORDINARY = re.compile(r"[A-Za-z0-9.,!?'\" -]*")
_EXTRAORDINARY = re.compile(r"^\s|\s$|\s[\s.,!?'-]|\w[!-]\w|[A-Za-z]\d|\d[A-Za-z]|\.[A-Za-z]")
"""In a text of the characters of `_ORDINARY`, what may have to be rewritten."""

_ENTITY = re.compile(r"&(?:amp;)*(#\d{1,7};|#[xX][0-9a-fA-F]{1,6};|[A-Za-z][A-Za-z0-9]{1,30};)")
_ATTRIBUTES = r"(?:\s+[\w:@-]+\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>]+))*\s*/?"
_INLINE = "a|abbr|b|big|code|del|em|font|i|ins|kbd|mark|q|s|small|span|strike|strong|sub|sup|tt|u|wbr"
_BLOCK = (
    "address|article|aside|audio|blockquote|body|br|button|caption|center|cite|col|colgroup|dd|details|div|dl|dt|"
    "fieldset|figcaption|figure|footer|form|h[1-6]|head|header|hr|html|iframe|img|input|label|legend|li|link|main|meta|"
    "nav|object|ol|optgroup|option|p|pre|section|select|source|summary|svg|table|tbody|td|textarea|tfoot|th|thead|"
    "title|tr|ul|video"
)
_HIDDEN = re.compile(r"<!--.*?-->|<(script|style)\b[^<>]*>.*?</\1\s*>|<!doctype[^<>]*>", re.DOTALL | re.IGNORECASE)
_INLINE_TAG = re.compile(rf"(?<!<)</?(?:{_INLINE}){_ATTRIBUTES}>(?!>)", re.IGNORECASE)
_BLOCK_TAG = re.compile(rf"</?(?:{_INLINE}|{_BLOCK}){_ATTRIBUTES}>", re.IGNORECASE)

_MARKDOWN_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*(?:\s+\"[^\"]*\")?\)")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[\w-]*[ \t]*$", re.MULTILINE)
_RULE = re.compile(r"^[ \t]*([-*_])(?:[ \t]*\1){2,}[ \t]*$", re.MULTILINE)
_LINE_MARK = re.compile(r"^[ \t]*(?:#{1,6}|>+)(?=[ \t])[ \t]*", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<![\w*_~`])(\*{1,3}|_{1,3}|~~|`{1,2})(?=[^\s*_~`])([^*_~`\n]*[^\s*_~`])\1(?![\w*_~`])")

_ADDRESS = re.compile(r"(?:mailto:)?[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+", re.IGNORECASE)
_DOMAIN = r"(?<![\w.-])(?:[a-z0-9][a-z0-9-]{0,62}\.){1,5}"
_URL = re.compile(
    r"<?\b(?:(?:https?|ftp|file)://|www\.)[^\s<>\"]+>?"
    rf"|{_DOMAIN}[a-z]{{2,24}}/[^\s<>\"]*"
    rf"|{_DOMAIN}(?:com|org|net|edu|gov|info|biz)\b(?![\w@-])",
    re.IGNORECASE,
)
_EMPTY_BRACKETS = re.compile(r"\(\s?\)|\[\s?\]|<\s?>")
_AFTER_URL = re.compile(r"[.,;:!?)\]}'\"»”]*$")

_APOSTROPHE = re.compile(r"(?<=\w)[’‘‛ʼʹ′´`＇](?=\w)|(?<=[sS])[’ʼ](?=\s)")  # noqa: RUF001
_SPACED_CONTRACTION = re.compile(r"(\w) (n?) ?' ?(t|s|m|re|ve|ll|d)\b(?!')", re.IGNORECASE)
_SPACE_BEFORE = re.compile(r" ([.,!?;:…]+(?=\s|$|[\"”])|[)\]}](?=\s|$|[.,!?]))")
_SPACE_AFTER = re.compile(r"((?:^| )[(\[{¿¡]) ")

_LOOSE_MARKS = re.compile(r"[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+")
"""Combining marks of no script of their own (Unicode, chapter 7.9); composed letters hold none."""
_JOINERS = "\u200c\u200d"
_FIRST_JOINED = "\u0590"
"""The scripts before Hebrew do not join letters, so that a joiner between their letters means nothing."""

_SWEAR_WORDS = re.findall(
    r"\w+",
    # English words from the mild to the strongest, after "Attitudes to potentially offensive language and gestures on
    # TV and radio" (Ofcom 2016), with their inflections. Slurs against groups are left out, because masked they cannot
    # be told from other words. Where one mask fits several words, the first one counts.
    "fuck shit damn hell crap dick piss cunt cock twat arse ass bitch prick whore slut "
    "fucks fucked fucker fuckers fucking fuckin motherfucker motherfuckers motherfucking "
    "shits shitty shitting bullshit horseshit shithead bitches bitchy bitching bastard bastards "
    "asshole assholes arsehole arseholes dickhead dickheads dicks pricks pissed pissing "
    "damned dammit goddamn goddamned crappy bloody bugger bollocks cunts twats wanker wankers whores sluts "
    # The strongest words of other languages that the text encoder of the shipped bundle reads.
    "scheisse scheiße arschloch arschlöcher ficken verfickt wichser hurensohn "
    "mierda puta putas joder cabrón coño merde putain connard connards salope enculé "
    "cazzo merda stronzo stronzi vaffanculo porra caralho kurwa "
    "сука суки блять хуй хуйня пиздец ебать",
)
_LOOKALIKES = {"a": "4@", "b": "8", "e": "3", "g": "9", "i": "1!", "l": "1", "o": "0", "s": "5$", "t": "7+"}
_WILDCARDS = "*#%&•·×_-"  # noqa: RUF001
_VOWELS = "aeiouáéíóúäöüаеёиоуыэюя"  # noqa: RUF001
_TOKEN = re.compile(rf"(?<![\w@$*])[\w@$!+{_WILDCARDS}]{{2,19}}[\w$@#*](?![\w$@#*])")
_MASK = re.compile(rf"[\d@$!+{_WILDCARDS}]")


def normalize_text(text: str) -> str:
    """Returns a text in plain writing.

    - HTML tags, comments and entities, and Markdown's marks, are removed or replaced by the text that they stand for.
    - Links and e-mail addresses are removed. A text of nothing else becomes `LINK`.
    - Control characters, zero-width characters, soft hyphens and loose combining marks are removed. The text is
      composed (Unicode's NFC), and letters of mathematical, full-width and circled alphabets become plain letters.
    - Typographic apostrophes become straight ones.
    - Spaces before punctuation and within contractions, as tokenizers write them, are removed.
    - In swear words, letters that were replaced by stars, signs or digits are restored.

    Normalizing the result changes nothing. A text that has letters or digits keeps some, and the result is at most
    three times as long, which is what composing does to a few characters (Unicode Standard Annex 15).
    """
    if _ORDINARY.fullmatch(text) and not _EXTRAORDINARY.search(text):
        return text
    for _ in range(MAX_PASSES):
        before, text = text, _rewrite(text)
        if text == before:
            return text
    return _rewrite(_kept(_without_signs, text))


def has_letters(text: str) -> bool:
    """Returns whether the text has letters or digits."""
    return any(unicodedata.category(character)[0] in "LN" for character in text)


def _rewrite(text: str) -> str:
    for step in (_visible_text, _without_markup, _without_markdown, _without_links, _spaced_plainly, _unmasked):
        text = _kept(step, text)
    return text


def _kept(step: Callable[[str], str], text: str) -> str:
    """Returns the text after a step, or as it is if the step would remove all of its letters and digits."""
    after = step(text)
    return after if after == text or has_letters(after) or not has_letters(text) else text


def _without_signs(text: str) -> str:
    return re.sub(r"[<>&*_`~\[\]\\@#$%|:/]", " ", text)


def _visible_text(text: str) -> str:
    text = unicodedata.normalize("NFC", "".join(map(_visible, text)))
    text = _LOOSE_MARKS.sub("", text)
    return re.sub(f"[{_JOINERS}]+", lambda found: found[0][0] if _joins(text, *found.span()) else "", text)


def _visible(character: str) -> str:
    """Returns what a character shows: nothing for one that is invisible, the letter for one of a decorative alphabet.

    The control characters from 128 to 159 are read as Windows-1252, as browsers read them (WHATWG, "Encoding").
    """
    if character.isascii() and character.isprintable():
        return character
    match unicodedata.category(character):
        case "Cc" if character >= "\x80":
            return character.encode("latin-1").decode("cp1252", errors="replace").replace("\ufffd", " ")
        case "Cc":
            return character if character == "\n" else " "
        case "Cf":
            return character if character in _JOINERS else ""
        case "Cs" | "Co":
            return ""
        case _:
            kind = unicodedata.decomposition(character).partition(" ")[0]
            return unicodedata.normalize("NFKC", character) if kind in ("<font>", "<wide>", "<circle>") else character


def _joins(text: str, start: int, end: int) -> bool:
    """Whether a joiner stands between characters of a script, or emoji, that it joins."""
    sides = text[max(0, start - 1) : start], text[end : end + 1]
    return all(side >= _FIRST_JOINED and not side.isspace() for side in sides)


def _without_markup(text: str) -> str:
    if "<" in text:
        text = _INLINE_TAG.sub("", _HIDDEN.sub(" ", text))
        text = _BLOCK_TAG.sub(" ", text)
    return _ENTITY.sub(lambda found: html.unescape(f"&{found[1]}"), text) if "&" in text else text


def _without_markdown(text: str) -> str:
    text = _MARKDOWN_LINK.sub(r"\1", text)
    for mark in (_FENCE, _RULE, _LINE_MARK):
        text = mark.sub("", text)
    return _EMPHASIS.sub(r"\2", text)


def _without_links(text: str) -> str:
    without = _URL.sub(_after_url, _ADDRESS.sub(" ", text))
    if without != text:
        without = _EMPTY_BRACKETS.sub(" ", without)
    return without if without == text or has_letters(without) else LINK


def _after_url(found: "re.Match[str]") -> str:
    """Returns the punctuation at the end of a link, which belongs to the sentence."""
    after = _AFTER_URL.search(found[0])
    return f" {after[0]}" if after else " "


def _spaced_plainly(text: str) -> str:
    text = _APOSTROPHE.sub("'", " ".join(text.split()))
    text, before = _SPACED_CONTRACTION.sub(r"\1\2'\3", text), None
    while before != text:
        before, text = text, _SPACE_BEFORE.sub(r"\1", text)
    return _SPACE_AFTER.sub(r"\1", text)


def _unmasked(text: str) -> str:
    return _TOKEN.sub(lambda found: _open_word(found[0]), text)


def _open_word(token: str) -> str:
    """Returns the swear word that a token masks, or the token if it masks none.

    A mask has as many characters as the word. It shows at least two of the letters, or the first of at least four if
    the others are stars.
    """
    if not _MASK.search(token):
        return token
    shown = sum(character.isalpha() for character in token)
    lookalike = sum(character in "@$!+" for character in token)
    has_digits = any(character.isdigit() for character in token)
    stars = len(token) > 3 and token[0].isalpha() and set(token[1:]) == {"*"}
    if shown < 2 and not stars and (has_digits or shown + lookalike < 2):
        return token
    masked = token.lower()
    for word in _SWEAR_WORDS:
        if len(word) == len(masked) and all(map(_may_be, masked, word)):
            return word.upper() if token.isupper() and shown > 1 else word.title() if token[0].isupper() else word
    return token


def _may_be(character: str, letter: str) -> bool:
    return (
        character == letter
        or character in _WILDCARDS
        or character in _LOOKALIKES.get(letter, "")
        or (character == "@" and letter in _VOWELS)
    )
