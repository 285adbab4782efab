"""Processes of an embedded run: their environment, and finding and stopping those that an earlier run left behind."""

import contextlib
import locale
import os
import re
import signal
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import psutil


def child_environment() -> dict[str, str]:
    """Return the environment of this process, with `LANG` and `LC_...` replaced by an installed UTF-8 locale."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LANG", "LC_"))}
    return kept | {"LC_ALL": _utf8_locale()}


@cache
def _utf8_locale() -> str:
    """Return the name of an installed UTF-8 locale, or "C" if there is none."""
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        for name in ("C.UTF-8", "en_US.UTF-8"):
            with contextlib.suppress(locale.Error):
                return locale.setlocale(locale.LC_CTYPE, name)
        return "C"
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def package_folder(package: str) -> Path:
    """Return the folder of an installed package without importing the package."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def folder_tag(folder: Path) -> str:
    """Return a tag of a folder, made of its device and inode, for the titles of the processes that work in it."""
    found = folder.stat()
    return f"tenor-{found.st_dev}-{found.st_ino}"


def processes_in(folder: Path, name: str) -> list[psutil.Process]:
    """Return the running processes called `name` that `works_in` finds in `folder`.

    The `info` of each process contains the id of its parent, "ppid".
    """
    return [process for process in psutil.process_iter(["ppid"]) if works_in(process, name, folder)]


def works_in(process: psutil.Process, name: str, folder: Path) -> bool | None:
    """Return whether a process is called `name` and its working directory is `folder`, or None if that is unknown.

    Folders are compared by device and inode, so a copied or moved folder is never mistaken for another. Root in a
    container may not read the working directory of another user's process; then the `folder_tag` in the title of the
    process decides.
    """
    try:
        if process.name() != name:
            return False
        try:
            # After the folder was moved, psutil returns its new path.
            return os.path.samefile(process.cwd(), folder)
        except psutil.AccessDenied:
            tag = re.search(r"\btenor-\d+-\d+\b", " ".join(process.cmdline()))
            return None if tag is None else tag.group() == folder_tag(folder)
    except (psutil.Error, OSError):
        return False


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs. A zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def stop_processes(processes: Iterable[psutil.Process], stop_signal: signal.Signals, patience_s: float) -> None:
    """Send `stop_signal` to each process, wait up to `patience_s` seconds, then kill those that still run."""
    running = [process for process in processes if is_alive(process)]
    for number, wait_s in ((stop_signal, patience_s), (signal.SIGKILL, 10)):
        for process in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        _, running = psutil.wait_procs(running, timeout=wait_s)
        running = [process for process in running if is_alive(process)]


def stop_left_over_child(pidfile: Path, module: str, data_dir: Path) -> None:
    """Stop the API or the worker that a killed run on `data_dir` left behind.

    Does nothing if the process in `pidfile` is another one: a copy of a data folder contains the pid files of the
    original.

    Args:
        pidfile: Contains the id of the process.
        module: The module in the command line of the process.
        data_dir: The folder to which `TENOR_DATA_DIR` in the environment of the process must lead.
    """
    try:
        process = psutil.Process(int(pidfile.read_text()))
        belongs = module in process.cmdline() and os.path.samefile(process.environ()["TENOR_DATA_DIR"], data_dir)
    except (OSError, ValueError, KeyError, psutil.Error):
        return
    if belongs:
        stop_processes([process], signal.SIGTERM, patience_s=30)
