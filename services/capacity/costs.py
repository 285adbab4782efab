"""What a turn costs, as `tenor bench stages` measures it and `tenor simulate` reckons with it."""

from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from shared.errors import SetupError
from shared.settings import Batches

SHIPPED = Path(__file__).parent / "costs.yaml"
STAGES = ("decode", "vad", "transcribe", "text", "speech", "fuse", "store")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Size(_Model):
    """A turn's size in a stage, as the limits of batches count it: a line over its seconds of sound."""

    fixed: float = Field(default=1, gt=0)
    per_second: float = Field(default=0, ge=0)

    def of(self, seconds: float) -> float:
        return self.fixed + self.per_second * seconds


class StageCost(_Model):
    """How long a stage takes for a batch where nothing else runs: a line over its items and their sound.

    Attributes:
        uses: what it keeps busy: the worker's cores, its GPU, or its interpreter, which runs one thread at a time.
        share: how much of that, in cores; 1 is the whole GPU or interpreter.
        per_second_s: for each second of a batch's longest sound times its items, as what is shorter is padded.
        size: None where turns go through the stage by themselves.
    """

    uses: Literal["cpu", "gpu", "interpreter"] = "cpu"
    share: float = Field(default=1, gt=0)
    fixed_s: float = Field(default=0, ge=0)
    per_item_s: float = Field(default=0, ge=0)
    per_second_s: float = Field(default=0, ge=0)
    size: Size | None = None

    def seconds(self, items: int, longest_s: float) -> float:
        """Of a batch of so many turns, the longest of which has `longest_s` seconds of sound."""
        return self.fixed_s + items * (self.per_item_s + self.per_second_s * longest_s)


class Traffic(_Model):
    """What Postgres, Redis and the processes have to do; of one turn, or of one worker in a second.

    Attributes:
        rows: inserted, updated or deleted.
        wal_bytes: that Postgres writes ahead.
        table_bytes: that its tables grow by, before it vacuums them; indexes apart.
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
    """What was measured, and where.

    Attributes:
        cores: of the machine that one worker has for itself.
        per_turn: of a spoken turn, from its POST until its result is written; reading it comes on top.
        idle: of one worker and one API that have nothing to do, in a second.
    """

    measured_on: str
    measured_at: str
    command: str
    bundle: str
    cores: int = Field(ge=1)
    stages: dict[str, StageCost]
    per_turn: Traffic
    idle: Traffic

    @field_validator("stages")
    @classmethod
    def _whole(cls, stages: dict[str, StageCost]) -> dict[str, StageCost]:
        if set(stages) != set(STAGES):
            raise ValueError(f"should be the costs of {', '.join(STAGES)}, not of {', '.join(stages) or 'nothing'}")
        if alone := [name for name, cost in stages.items() if cost.size and name not in Batches.model_fields]:
            raise ValueError(f"{', '.join(alone)} should have no size: it does not run in batches")
        return stages

    @classmethod
    def load(cls, file: Path = SHIPPED) -> Self:
        """Read what `tenor bench stages --out` wrote; YAML, or JSON, which is YAML as well.

        Raises:
            SetupError: the file cannot be read, or is not what that writes.
        """
        try:
            return cls.model_validate(yaml.safe_load(file.read_text()))
        except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
            raise SetupError(f"{file} holds no costs as `tenor bench stages --out` writes them: {error}") from None

    def traffic(self, turns_per_s: float, workers: int) -> Traffic:
        """Of a fleet, in a second."""
        per_turn, idle = self.per_turn.model_dump(), self.idle.model_dump()
        return Traffic(**{name: turns_per_s * per_turn[name] + workers * idle[name] for name in per_turn})

    def save(self, file: Path) -> None:
        file.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120))
