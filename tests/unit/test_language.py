"""Tags of languages."""

import pytest

from shared.domain.language import normalize_tag, whisper_code


@pytest.mark.parametrize(
    ("tag", "normal", "whisper"),
    [
        ("EN", "en", "en"),
        ("en_US", "en-US", "en"),
        ("pt-br", "pt-BR", "pt"),
        ("ZH-hant-tw", "zh-Hant-TW", "zh"),
        ("sr-Latn", "sr-Latn", "sr"),
        ("es-419", "es-419", "es"),
        ("ca-ES-valencia", "ca-ES-valencia", "ca"),
        ("de-DE-u-co-phonebk", "de-DE-u-co-phonebk", "de"),
        ("fil-PH", "fil-PH", "tl"),
        ("nb", "nb", "no"),
        ("jv", "jv", "jw"),
        ("zh-yue-HK", "zh-yue-HK", "yue"),
        ("cmn-Hans", "cmn-Hans", "zh"),
    ],
)
def test_a_tag_is_accepted_in_any_case_with_script_and_region(tag: str, normal: str, whisper: str) -> None:
    assert normalize_tag(tag) == normal
    assert whisper_code(tag) == whisper


@pytest.mark.parametrize(
    "tag", ["", "e", "english", "klingon", "en-", "en US", "en--US", "en\n", "12", "en" + "-abcde" * 6]
)
def test_what_is_no_tag_of_a_language_is_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="is not a BCP 47 language tag"):
        normalize_tag(tag)
