"""Settings: what is wrong with them is said in one line."""

from pathlib import Path

import pytest

from shared.errors import SetupError
from shared.settings import get_settings


def test_an_env_file_that_is_not_text_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes(b"TENOR_LOG_FORMAT=\xff\n")
    get_settings.cache_clear()
    with pytest.raises(SetupError, match=rf"{tmp_path}/.env cannot be read: it is not UTF-8"):
        get_settings()
