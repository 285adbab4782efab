"""Processes of an embedded run: their environment, and how one that an earlier run left behind is found and ended."""

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
    """Return this process's environment with a UTF-8 locale that the machine has, whatever `LANG` and `LC_...` name."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LANG", "LC_"))}
    return kept | {"LC_ALL": _utf8_locale()}


@cache
def _utf8_locale() -> str:
    """Return the name of an installed UTF-8 locale, or "C" where there is none."""
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
    """Return a word that names a folder by device and inode, for the title of a process that works in it."""
    found = folder.stat()
    return f"tenor-{found.st_dev}-{found.st_ino}"


def processes_in(folder: Path, name: str) -> list[psutil.Process]:
    """Return the running processes called `name` that `works_in` finds in `folder`.

    The `info` of each process has the number of its parent, "ppid".
    """
    return [process for process in psutil.process_iter(["ppid"]) if works_in(process, name, folder)]


def works_in(process: psutil.Process, name: str, folder: Path) -> bool | None:
    """Return whether a process is called `name` and its working directory is `folder`; None: it cannot be found out.

    The folders are compared by device and inode, so the servers of a copied or moved folder are never confused. Root
    in a container may not read the working directory of another user's process: then the `folder_tag` in the title of
    the process counts.
    """
    try:
        if process.name() != name:
            return False
        try:
            # psutil returns the current path also after the folder was moved.
            return os.path.samefile(process.cwd(), folder)
        except psutil.AccessDenied:
            tag = re.search(r"\btenor-\d+-\d+\b", " ".join(process.cmdline()))
            return None if tag is None else tag.group() == folder_tag(folder)
    except (psutil.Error, OSError):
        return False


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs. One that has ended and that its parent has not yet reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def stop_processes(processes: Iterable[psutil.Process], gently: signal.Signals, patience_s: float) -> None:
    """Send each process the signal `gently`, wait for `patience_s` seconds, then kill those that still run."""
    running = [process for process in processes if is_alive(process)]
    for number, wait_s in ((gently, patience_s), (signal.SIGKILL, 10)):
        for process in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        _, running = psutil.wait_procs(running, timeout=wait_s)
        running = [process for process in running if is_alive(process)]


def stop_left_over_child(pidfile: Path, module: str, data_dir: Path) -> None:
    """End the API or worker that a killed run on `data_dir` left behind, if the process in `pidfile` is that.

    Args:
        pidfile: begins with the number of the process. A copy of a data folder has the pid files of the original.
        module: that the process runs, as its command line names it.
        data_dir: the folder that `TENOR_DATA_DIR` in the environment of the process has to lead to.
    """
    try:
        process = psutil.Process(int(pidfile.read_text()))
        belongs = module in process.cmdline() and os.path.samefile(process.environ()["TENOR_DATA_DIR"], data_dir)
    except (OSError, ValueError, KeyError, psutil.Error):
        return
    if belongs:
        stop_processes([process], signal.SIGTERM, patience_s=30)
