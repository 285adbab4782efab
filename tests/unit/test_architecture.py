"""Which package may import which, and which packages load no model library."""

import json
import subprocess
import sys
from pathlib import Path

from shared import errors
from tests.unit.conftest import MODEL_LIBRARIES

ROOT = Path(__file__).parents[2]
WITHOUT_MODELS = [
    "shared.messaging.broker",
    "shared.store.database",
    "services.api.app",
    "services.cli.main",
    "benchmarks.capacity.tables",
]
UNIT_TESTS = sorted(f"tests.unit.{file.stem}" for file in Path(__file__).parent.glob("test_*.py"))


def test_the_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_the_api_the_command_line_the_store_and_the_simulation_import_no_model_library() -> None:
    assert model_libraries_imported_by(WITHOUT_MODELS) == {}


def test_the_unit_tests_import_no_model_library() -> None:
    assert model_libraries_imported_by(UNIT_TESTS) == {}


def model_libraries_imported_by(modules: list[str]) -> dict[str, list[str]]:
    """Imports the modules in a new process and returns the first that imports a model library, with those libraries."""
    program = f"""
import importlib, json, sys
imported = {{}}
for module in {modules!r}:
    importlib.import_module(module)
    found = {MODEL_LIBRARIES!r} & sys.modules.keys()
    if found and not imported:
        imported[module] = sorted(found)
print(json.dumps(imported))
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def test_the_command_line_loads_the_benchmarks_only_to_run_them() -> None:
    program = "import sys, services.cli.main; print([name for name in sys.modules if name.startswith('benchmarks')])"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_package_marker_is_empty() -> None:
    for package in ("services", "workers", "shared", "training", "benchmarks"):
        for marker in (ROOT / package).rglob("__init__.py"):
            assert marker.read_text() == "", marker


def every_error(root: type[errors.TenorError] = errors.TenorError) -> list[type[errors.TenorError]]:
    return [root, *(error for kind in root.__subclasses__() for error in every_error(kind))]


def test_every_error_has_a_code_of_its_own_and_stands_in_the_drawn_tree() -> None:
    codes = [error.code for error in every_error()]
    assert len(codes) == len(set(codes))
    for error in every_error():
        assert error.__name__ in (errors.__doc__ or ""), error
        assert 400 <= error.status < 600
