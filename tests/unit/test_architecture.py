"""Who may import whom."""

import subprocess
import sys
from pathlib import Path

import pytest

from shared import errors

ROOT = Path(__file__).parents[2]


def test_the_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "module", ["services.api.app", "services.cli.main", "shared.messaging.broker", "shared.store.database"]
)
def test_the_contract_never_loads_the_models_libraries(module: str) -> None:
    heavy = "{'torch', 'transformers', 'faster_whisper', 'ctranslate2', 'onnxruntime'}"
    program = f"import sys, {module}; print(sorted({heavy} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


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
