"""The tests here run without models and without servers, so that `make unit` takes seconds."""

import sys
from collections.abc import Iterator

import pytest

MODEL_LIBRARIES = {"torch", "transformers", "faster_whisper", "ctranslate2", "onnxruntime"}


@pytest.fixture(autouse=True)
def no_model_library() -> Iterator[None]:
    """Fails a test that imports a model library. Another folder's tests in the same process may have imported it."""
    before = MODEL_LIBRARIES & sys.modules.keys()
    yield
    imported = (MODEL_LIBRARIES & sys.modules.keys()) - before
    assert not imported, f"this test imported {sorted(imported)}: move it to tests/models"


@pytest.fixture(scope="session")
def servers() -> None:
    """Takes the place of the servers' fixture, and fails whatever test asks for it."""
    pytest.fail("this test needs Postgres or Valkey: move it to tests/integration")
