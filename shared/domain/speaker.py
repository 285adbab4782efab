"""Speakers: their roles in a conversation."""

from enum import StrEnum


class SpeakerRole(StrEnum):
    """The role of a speaker. `customer`, `user` and `patient` are the session's subject."""

    customer = "customer"
    agent = "agent"
    user = "user"
    bot = "bot"
    patient = "patient"
    clinician = "clinician"

    @property
    def is_subject(self) -> bool:
        """Whether this is a role of the session's subject."""
        return self in (SpeakerRole.customer, SpeakerRole.user, SpeakerRole.patient)
