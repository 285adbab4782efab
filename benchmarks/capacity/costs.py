"""The cost of a turn in each stage, as `tenor bench stages` measures it and `tenor simulate` uses it."""

# PyYAML is not fully typed.
# pyright: reportUnknownMemberType=false

from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import SetupError
from shared.settings import Batches

SHIPPED = Path(__file__).parent / "costs.yaml"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Size(_Model):
    """The size of a turn in a stage, in the unit of the stage's batch limit: a line over the seconds of its audio."""

    fixed: float = Field(default=1, gt=0)
    per_second: float = Field(default=0, ge=0)

    def of(self, seconds: float) -> float:
        """Return the size of a turn of `seconds` seconds."""
        return self.fixed + self.per_second * seconds


class StageCost(_Model):
    """The time that a stage takes for a batch on an idle machine: a line over the items and their audio.

    Attributes:
        uses: the resource that the stage keeps busy: the worker's cores, its GPU, or its Python interpreter, which
            runs one thread at a time.
        share: how much of that resource, in cores; 1 is the whole GPU or interpreter.
        fixed_s: seconds of every batch.
        per_item_s: seconds for each turn of the batch.
        per_second_s: seconds for each turn and each second of the longest audio in the batch, since shorter audio is
            padded.
        size: None where turns go through the stage one by one.
    """

    uses: Literal["cpu", "gpu", "interpreter"] = "cpu"
    share: float = Field(default=1, gt=0)
    fixed_s: float = Field(default=0, ge=0)
    per_item_s: float = Field(default=0, ge=0)
    per_second_s: float = Field(default=0, ge=0)
    size: Size | None = None

    def seconds(self, items: int, longest_s: float) -> float:
        """Return the seconds for a batch of `items` turns, whose longest audio has `longest_s` seconds."""
        return self.fixed_s + items * (self.per_item_s + self.per_second_s * longest_s)


class Step(_Model):
    """A step of a turn through the models: it is submitted to a stage, or waits for the stage's result."""

    action: Literal["submit", "wait"]
    stage: str


class Traffic(_Model):
    """The work of Postgres, Redis and the processes, for one turn or for one second of an idle worker and API.

    Attributes:
        rows: inserted, updated or deleted.
        wal_bytes: written to Postgres' write-ahead log.
        table_bytes: growth of Postgres' tables without their indexes, before a vacuum.
        index_bytes: growth of their indexes.
        redis_bytes: received and sent.
    """

    transactions: float = Field(ge=0)
    rows: float = Field(ge=0)
    wal_bytes: float = Field(ge=0)
    table_bytes: float = Field(ge=0)
    index_bytes: float = Field(ge=0)
    redis_commands: float = Field(ge=0)
    redis_bytes: float = Field(ge=0)
    postgres_cpu_s: float = Field(ge=0)
    redis_cpu_s: float = Field(ge=0)
    api_cpu_s: float = Field(ge=0)
    worker_cpu_s: float = Field(ge=0)


class Costs(_Model):
    """The measured costs, and where they were measured.

    Attributes:
        command: measures them again.
        cores: of the machine; a worker has them for itself.
        path: the steps of a turn through the pipeline's stages, between `decode` and `store`.
        stages: the cost of each stage.
        per_turn: of an audio turn, from its POST until its result is stored; reading the result is not included.
        idle: of one worker and one API that have nothing to do, per second.
    """

    measured_on: str
    measured_at: str
    command: str
    bundle: str
    cores: int = Field(ge=1)
    path: tuple[Step, ...]
    stages: dict[str, StageCost]
    per_turn: Traffic
    idle: Traffic

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        names = stage_names(self.path)
        if set(self.stages) != set(names):
            found = ", ".join(self.stages) or "nothing"
            raise ValueError(f"stages should be the costs of {', '.join(names)}, not of {found}")
        if unbatched := [name for name, cost in self.stages.items() if cost.size and name not in Batches.model_fields]:
            raise ValueError(f"{', '.join(unbatched)} should have no size: it does not run in batches")
        return self

    @classmethod
    def load(cls, file: Path = SHIPPED) -> Self:
        """Read a file that `tenor bench stages --out` wrote, as YAML or JSON.

        Raises:
            SetupError: the file cannot be read, or is not valid.
        """
        try:
            return cls.model_validate(yaml.safe_load(file.read_text()))
        except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
            raise SetupError(f"{file} holds no costs as `tenor bench stages --out` writes them: {error}") from None

    def traffic(self, turns_per_s: float, workers: int) -> Traffic:
        """Return the traffic of a number of workers, per second."""
        per_turn, idle = self.per_turn.model_dump(), self.idle.model_dump()
        return Traffic(**{name: turns_per_s * per_turn[name] + workers * idle[name] for name in per_turn})

    def save(self, file: Path) -> None:
        """Write the costs as YAML."""
        file.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120))


def stage_names(path: tuple[Step, ...]) -> tuple[str, ...]:
    """Return the stages of a turn, in the order in which it enters them."""
    return ("decode", *(step.stage for step in path if step.action == "submit"), "store")
