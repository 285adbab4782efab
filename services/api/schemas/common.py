"""Types that the schemas of several resources use."""

import re
from datetime import datetime
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, Field

from shared.domain.job import Job

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_MAX_QUOTED = 40


def _check_is_written_out(time: object) -> object:
    """Refuse numbers, which pydantic reads as seconds or milliseconds since 1970, depending on their size."""
    if not (isinstance(time, str) and _DATE.match(time)):
        found = f", not {str(time)[:_MAX_QUOTED]!r}" if isinstance(time, str | int | float) else ""
        raise ValueError(f"should be a time with a time zone, such as '2026-11-28T17:09:53Z'{found}")
    return time


def _check_year(time: datetime) -> datetime:
    if not 1900 <= time.year <= 2999:
        raise ValueError("the year must be from 1900 to 2999")
    return time


Time = Annotated[AwareDatetime, BeforeValidator(_check_is_written_out), AfterValidator(_check_year)]


class ErrorOut(BaseModel):
    """Why a job has failed."""

    code: str = Field(examples=["audio_undecodable"])
    message: str

    @classmethod
    def of(cls, job: Job) -> Self | None:
        """Return the error of a job; None if it has none."""
        return None if job.error_code is None else cls(code=job.error_code, message=job.error_message or "")
