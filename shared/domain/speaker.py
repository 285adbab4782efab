"""The roles of the speakers of a conversation."""

from enum import StrEnum


class SpeakerRole(StrEnum):
    """What a speaker is to the conversation. `customer`, `user` and `patient` are whom a session is about."""

    customer = "customer"
    agent = "agent"
    user = "user"
    bot = "bot"
    patient = "patient"
    clinician = "clinician"

    @property
    def is_subject(self) -> bool:
        """Whether it is the session's subject who speaks in this role."""
        return self in (SpeakerRole.customer, SpeakerRole.user, SpeakerRole.patient)
