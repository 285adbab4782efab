"""Models that are loaded when they are first needed."""

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

Model = TypeVar("Model")


class LazyModel(Generic[Model]):
    """A model that is loaded once, by whichever thread asks for it first; the others wait."""

    def __init__(self, load: Callable[[], Model]) -> None:
        self._load = load
        self._lock = Lock()
        self._loaded: Model | None = None

    def get(self) -> Model:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded
