# ruff: noqa: RUF001 - the characters that look alike are what is tested
"""Texts are read in plain writing, however a chat program, a web form or a recogniser wrote them."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.modeling.text_normalization import has_letters, normalize_text

PIECES = [
    *"abz AZ09.,!?;:'\"()[]{}<>/&*_~`#@$%-–\n\t",
    *"éßñяшיمक我😀👩\u200d\u200c\u200b\u00ad\u0301\u0336\x92\x00’“”«»𝗮ａⓐ\u0958\U0001d160",
    *(
        "<b>",
        "</b>",
        "<br>",
        "&amp;",
        "&lt;",
        "&#39;",
        "**",
        "```",
        "http://",
        "www.",
        ".com",
        "@x.org",
        " n't",
        "f**k",
    ),
]
texts = st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=60)


@given(texts)
@example("&amp;amp;lt;b&amp;gt;hi")
@example("<<b>b>hi")
@example("<b>")
@example("**b*_b_*")
def test_normalizing_keeps_letters_and_is_stable_and_bounded(text: str) -> None:
    normal = normalize_text(text)
    assert normalize_text(normal) == normal
    assert len(normal) <= 3 * len(text) + 4
    visible = "".join(character for character in text if unicodedata.category(character) not in ("Co", "Cs", "Cc"))
    assert has_letters(normal) or not has_letters(visible)


@pytest.mark.parametrize(
    "text",
    [
        "I will call you back on Tuesday at 3 o'clock, ok?",
        "Well... what's up with that?! (no idea) :) ;-)",
        "I <3 you, a < b and c > d, 5 * 3 * 2, snake_case_name, #1 & only 50% - $20",
        "e.g. 3.5 and 10:30; it.me too",
        "rock 'n' roll",
        "I stayed in a 5*** hotel on the A55, grade A**",
        "Ich bin so glücklich – „das“ ist «wunderbar»!",
        "می‌خواهم",
        "मैं बहुत खुश हूँ",
        "👩‍👩‍👧 ❤️",
        "J'ai peur.",
    ],
)
def test_ordinary_texts_stay_as_they_are(text: str) -> None:
    assert normalize_text(text) == text


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("<p>I am <b>so</b> angry&nbsp;!<br/>Thanks<!-- not --></p>", "I am so angry! Thanks"),
        ("<style>p { color: red }</style>Hi <a href='http://x.org'>you</a>", "Hi you"),
        ("&lt;b&gt;no&lt;/b&gt; AT&amp;T", "no AT&T"),
        ("**I hate** this, _really_ `hate` ~~it~~", "I hate this, really hate it"),
        ("# Title\n> quoted\n\n[a link](https://x.org/y)", "Title quoted a link"),
        ("See https://hate.example/angry?x=1. Thanks (www.x.org)!", "See. Thanks!"),
        ("Mail angry.customer@hate.example please", "Mail please"),
        ("angry.customer@hate.example", "link"),
        ("http://hate.example/angry", "link"),
        ("an\u00adgry an\u200bgry \u202eangry a\u0336n\u0336g\u0336r\u0336y\ufeff", "angry angry angry angry"),
        ("cafe\u0301 за\u0301мок", "café замок"),
        ("𝗮𝗻𝗴𝗿𝘆 ＡＮＧＲＹ ⓐⓝⓖⓡⓨ", "angry ANGRY angry"),
        ("I\x92m fine", "I'm fine"),
        ("don’t, l’homme, James’ house", "don't, l'homme, James' house"),
        ("Hey man , what 's up ? I do n't know . . .", "Hey man, what's up? I don't know..."),
        ("I ' m here ( hello ! )", "I'm here (hello!)"),
        ("  a  b\t\nc\x00 ", "a b c"),
        ("What the f**k, you f***ing $hit and a$$holes!", "What the fuck, you fucking shit and assholes!"),
        ("This is sh1t! F@CK! B!tch.", "This is shit! FUCK! Bitch."),
        ("So ein Sch*iß, m*erde, с*ка", "So ein Sch*iß, m*erde, сука"),
        ("joder, qué m**rda", "joder, qué mierda"),
    ],
)
def test_odd_writing_becomes_plain(text: str, plain: str) -> None:
    assert normalize_text(text) == plain
