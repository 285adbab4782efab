"""The documentation site: it builds without warnings and holds the OpenAPI document of the application."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.api.app import create_app
from shared.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_holds_the_applications_openapi_document(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    document = json.loads((tmp_path / "reference" / "openapi.json").read_text())
    assert document == json.loads(json.dumps(create_app(Settings()).openapi()))
    assert "redoc.standalone.js" in (tmp_path / "reference" / "api" / "index.html").read_text()
    assert (tmp_path / "reference" / "redoc.standalone.js").stat().st_size > 100_000
