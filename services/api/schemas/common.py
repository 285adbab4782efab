"""Types that the schemas of several resources use."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, Field

from shared.domain.job import Job


def _check_year(time: datetime) -> datetime:
    if not 1900 <= time.year <= 2999:
        raise ValueError("the year must be from 1900 to 2999")
    return time


Time = Annotated[AwareDatetime, AfterValidator(_check_year)]


class ErrorOut(BaseModel):
    """Why a job has failed."""

    code: str = Field(examples=["audio_undecodable"])
    message: str

    @classmethod
    def of(cls, job: Job) -> Self | None:
        """Return the error of a job; None if it has none."""
        return None if job.error_code is None else cls(code=job.error_code, message=job.error_message or "")
