"""Logs: to stderr, one line an event, with ids and codes and never a person's words or a secret."""

import logging


def configure_logging(level: int = logging.INFO) -> None:
    """Set up this process's logs. Libraries are heard from WARNING on."""
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", level=logging.WARNING)
    for package in ("services", "workers", "shared", "training"):
        logging.getLogger(package).setLevel(level)
