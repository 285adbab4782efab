"""Models that are loaded on first use."""

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

Model = TypeVar("Model")


class LazyModel(Generic[Model]):
    """A model that is loaded once, by the first thread that calls `get`. Other threads wait for it."""

    def __init__(self, load: Callable[[], Model]) -> None:
        self._load = load
        self._lock = Lock()
        self._loaded: Model | None = None

    def get(self) -> Model:
        """Returns the model, and loads it if this is the first call.

        If loading raises, the next call tries again.
        """
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded
