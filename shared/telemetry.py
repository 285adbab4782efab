"""Logs: to stderr, one line an event, with ids and codes and never a person's words or a secret."""

import logging
import traceback


def configure_logging(level: int = logging.INFO) -> None:
    """Set up this process's logs. Libraries are heard from WARNING on."""
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", level=logging.WARNING)
    for package in ("services", "workers", "shared", "training"):
        logging.getLogger(package).setLevel(level)


def type_and_place(error: Exception) -> str:
    """What may be logged of an unforeseen error. Its message may quote what a person said, so it may not."""
    return type(error).__name__ + "\n" + "".join(traceback.format_tb(error.__traceback__))
