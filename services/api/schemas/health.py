"""Schemas of the health checks."""

from pydantic import BaseModel, Field


class Health(BaseModel):
    """The API process is alive."""

    status: str = Field(examples=["ok"])


class Readiness(BaseModel):
    """The services that Tenor depends on. `workers` counts those that renewed their registration lately."""

    database: str = Field(examples=["ok"])
    broker: str = Field(examples=["ok"])
    workers: int = Field(examples=[1])
