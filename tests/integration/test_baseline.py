"""What a turn is read against: the same earlier turns, whenever and however often it is taken up."""

import queue
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shared.domain.job import Job, JobStatus, Lane, NewJob
from shared.domain.session import Consent
from shared.domain.speaker import SpeakerRole
from shared.domain.transcript import Transcript
from shared.domain.turn import MAX_BASELINE_TURNS, NewTurn, Turn, TurnWork
from shared.errors import AudioUndecodable
from shared.settings import JobSettings, Settings
from shared.store.database import Database
from tests.integration.conftest import end_with, read_turn, take_up
from tests.integration.test_jobs import PREDICTION

LEASE = timedelta(seconds=30)
NO_TIME = timedelta(0)


class House:
    """A database with one tenant, and a worker's steps, each a transaction of its own."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self._url = settings.database.url.get_secret_value()
        with database.transaction() as transaction:
            self.tenant_id = transaction.accounts.ensure_tenant("acme")

    def session(
        self, subject_ref: str | None = None, *, keep: bool = True, tenant: str = "acme", context: bool = True
    ) -> UUID:
        with self.database.transaction() as transaction:
            tenant_id = transaction.accounts.ensure_tenant(tenant)
            consent = Consent(keep_audio_summary=keep)
            return transaction.sessions.create(tenant_id, consent, subject_ref, context=context).id

    def say(
        self,
        session_id: UUID,
        *,
        speaker: str = "Ana",
        role: SpeakerRole = SpeakerRole.customer,
        text: str | None = None,
        spoken: bool = True,
        tenant: str = "acme",
        context: bool = True,
    ) -> Job:
        with self.database.transaction() as transaction:
            tenant_id = transaction.accounts.ensure_tenant(tenant)
            recording_id = None
            if spoken:
                recording_id = transaction.recordings.add(
                    session_id,
                    uri=str(uuid4()),
                    sha256="0" * 64,
                    media_type="audio/wav",
                    duration_s=1.0,
                    channel_count=1,
                    retention=None,
                ).id
            new_turn = NewTurn(tenant_id, session_id, speaker, role, text, recording_id, context=context)
            (turn,) = transaction.turns.add_all([new_turn])
            assert isinstance(turn, Turn)
            new = NewJob(turn_id=turn.id, lane=Lane.interactive)
            ((job, _),) = transaction.jobs.enqueue([new], lease=LEASE)
            return job

    def write(self, session_id: UUID, text: str, *, context: bool = True) -> Job:
        return self.say(session_id, text=text, spoken=False, context=context)

    def claim(self, job: Job | UUID, bundle_id: str = "bundle", lease: timedelta = LEASE) -> TurnWork | None:
        with self.database.transaction() as transaction:
            return take_up(transaction, job.id if isinstance(job, Job) else job, lease, bundle_id)

    def succeed(self, work: TurnWork, bundle_id: str = "bundle", transcript_text: str = "") -> list[UUID] | None:
        """Returns the ids of the published jobs, or None if the claim was lost. The audio summary is the turn's id."""
        transcript = Transcript.provided(work.turn.text or transcript_text)
        prediction = PREDICTION.model_copy(update={"baseline_turns": len(work.earlier_summaries)})
        with self.database.transaction() as transaction:
            summary = work.turn.id.bytes if work.turn.recording_id else None
            messages = end_with(transaction, work.job, transcript, prediction, summary, bundle_id)
            return None if messages is None else [message.job_id for message in messages]

    def fail(self, work: TurnWork) -> list[UUID]:
        with self.database.transaction() as transaction:
            messages = transaction.jobs.fail(work.job, AudioUndecodable("damaged"), lease=LEASE)
            assert messages is not None
            return [message.job_id for message in messages]

    def done(self, job: Job, bundle_id: str = "bundle", transcript_text: str = "") -> TurnWork:
        work = self.claim(job, bundle_id)
        assert work is not None
        assert self.succeed(work, bundle_id, transcript_text) is not None
        return work

    def status(self, job: Job | UUID) -> tuple[JobStatus, int]:
        with psycopg.connect(self._url) as connection:
            job_id = job.id if isinstance(job, Job) else job
            row = connection.execute("SELECT status, attempts FROM jobs WHERE id = %s", [job_id]).fetchone()
        assert row is not None
        return JobStatus(row[0]), row[1]

    def sweep(self, max_attempts: int = 5) -> list[UUID]:
        """The jobs that the sweeper sends for; what was sent for before is forgotten."""
        with self.database.transaction() as transaction:
            transaction.outbox.remove(transaction.outbox.unsent(NO_TIME))
            transaction.jobs.sweep(lease=LEASE, retries=Settings(jobs=JobSettings(max_attempts=max_attempts)).retries)
        with self.database.transaction() as transaction:
            return [message.job_id for message in transaction.outbox.unsent(NO_TIME)]

    def let_leases_run_out(self) -> None:
        with psycopg.connect(self._url) as connection:
            connection.execute("UPDATE jobs SET lease_until = now() - interval '1 s'")


@pytest.fixture
def house(database: Database, settings: Settings) -> House:
    return House(database, settings)


def turn_ids(*of: Job) -> tuple[bytes, ...]:
    return tuple(job.turn_id.bytes for job in of if job.turn_id)


def test_a_baseline_holds_only_the_speakers_own_earlier_turns(house: House) -> None:
    session = house.session()
    first = house.say(session)
    agent = house.say(session, role=SpeakerRole.agent)  # goes by the same name, as many do who give none
    other = house.say(session, speaker="Ben")
    written = house.write(session, "I wrote this")
    last = house.say(session)
    for job in (first, agent, other, written):
        assert house.done(job).earlier_summaries == ()
    assert house.done(last).earlier_summaries == turn_ids(first)


def test_a_baseline_spans_all_sessions_of_the_subject(house: House) -> None:
    monday, tuesday = house.session("p-17"), house.session("p-17")
    stranger, elsewhere = house.session("p-18"), house.session("p-17", tenant="globex")
    spoken = [house.say(monday), house.say(tuesday), house.say(monday)]
    agents = [house.say(session, speaker="Tom", role=SpeakerRole.agent) for session in (monday, tuesday)]
    others = [house.say(stranger), house.say(elsewhere, tenant="globex")]
    assert [house.done(job).earlier_summaries for job in spoken] == [turn_ids(*spoken[:count]) for count in range(3)]
    assert [house.done(job).earlier_summaries for job in agents + others] == [()] * 4


def test_a_baseline_holds_only_the_newest_turns(house: House) -> None:
    session = house.session()
    spoken = [house.say(session) for _ in range(MAX_BASELINE_TURNS + 3)]
    read = [house.done(job) for job in spoken]
    assert read[-1].earlier_summaries == turn_ids(*spoken[2:-1])
    prediction = read_turn(house.database, house.tenant_id, spoken[-1].turn_id).prediction
    assert prediction is not None
    assert prediction.baseline_turns == MAX_BASELINE_TURNS


def test_a_bundle_uses_only_audio_summaries_of_its_own(house: House) -> None:
    session = house.session()
    first, second, third = (house.say(session) for _ in range(3))
    house.done(first, "old")
    assert house.done(second, "new").earlier_summaries == ()
    assert house.done(third, "new").earlier_summaries == turn_ids(second)


def test_without_consent_no_summary_is_kept_and_none_is_used(house: House, settings: Settings) -> None:
    asked, not_asked = house.session("p-17"), house.session("p-17", keep=False)
    house.done(house.say(asked))
    assert [house.done(house.say(not_asked)).earlier_summaries for _ in range(2)] == [(), ()]
    assert summaries_kept(settings) == 1
    assert len(house.done(house.say(asked)).earlier_summaries) == 1


def test_an_audio_summary_is_written_once_and_deleted_with_its_session(house: House, settings: Settings) -> None:
    session = house.session("p-17")
    job = house.say(session)
    slow = house.claim(job, lease=NO_TIME)
    quick = house.claim(job)
    assert slow is not None
    assert quick is not None
    assert house.succeed(quick) == []
    assert house.succeed(slow) is None
    assert summaries_kept(settings) == 1
    with house.database.transaction() as transaction:
        transaction.sessions.delete(house.tenant_id, session)
    assert summaries_kept(settings) == 0


def summaries_kept(settings: Settings) -> int:
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        (count,) = connection.execute("SELECT count(*) FROM audio_summaries").fetchone() or (None,)
    assert count is not None
    return count


def test_a_turn_with_audio_waits_for_earlier_turns_without_using_an_attempt(house: House) -> None:
    session = house.session()
    first, second, third = house.say(session), house.say(session, speaker="Ben"), house.say(session)
    work = house.claim(first)
    assert work is not None
    for waiting in (second, third):
        assert house.claim(waiting) is None
        assert house.status(waiting) == (JobStatus.queued, 0)
    assert house.succeed(work) == [second.id]
    assert house.claim(third) is None
    assert house.fail(house.claim(second) or pytest.fail("it still waits")) == [third.id]
    assert house.done(third).earlier_summaries == turn_ids(first)


def test_a_subjects_turn_waits_for_their_earlier_turns_in_other_sessions(house: House) -> None:
    monday, tuesday = house.session("p-17"), house.session("p-17")
    first, second = house.say(monday), house.say(tuesday)
    agent = house.say(house.session("p-17"), role=SpeakerRole.agent)
    assert house.claim(second) is None
    assert house.claim(agent) is not None
    work = house.claim(first)
    assert work is not None
    assert house.succeed(work) == [second.id]
    assert house.done(second).earlier_summaries == turn_ids(first)


def test_a_text_turn_without_context_neither_waits_nor_blocks_others(house: House) -> None:
    session = house.session(context=False)
    first, written, second = house.say(session), house.write(session, "x"), house.say(session)
    work = house.claim(written)
    assert work is not None
    assert house.succeed(work) == []
    house.done(first)
    untouched = house.write(session, "y")
    house.done(second)
    assert house.status(untouched) == (JobStatus.queued, 0)


def test_a_turn_without_attempts_left_does_not_block_later_turns(house: House) -> None:
    session = house.session()
    first, second = house.say(session), house.say(session)
    assert house.claim(first, lease=NO_TIME) is not None
    assert house.claim(second) is None
    assert house.sweep(max_attempts=1) == [second.id]
    assert house.status(first)[0] is JobStatus.quarantined
    assert house.done(second).earlier_summaries == ()


def test_dropping_a_turn_unblocks_the_turn_that_waited_for_it(house: House) -> None:
    session = house.session()
    first, second = house.say(session), house.say(session)
    late = house.claim(first)
    assert late is not None
    with house.database.transaction() as transaction:
        sent = transaction.job_admin.drop(first, lease=LEASE)
    assert [message.job_id for message in sent] == [second.id]
    assert house.succeed(late) is None
    assert house.done(second).earlier_summaries == ()


def test_a_retried_turn_gets_the_same_baseline_and_later_turns_wait_for_it(house: House) -> None:
    session = house.session()
    first, second, third = (house.say(session) for _ in range(3))
    house.done(first)
    assert house.claim(second, lease=NO_TIME) is not None
    house.sweep(max_attempts=1)
    with house.database.transaction() as transaction:
        transaction.job_admin.requeue(second, lease=LEASE)
    assert house.claim(third) is None
    assert house.done(second).earlier_summaries == turn_ids(first)
    assert house.done(third).earlier_summaries == turn_ids(first, second)


def test_deleting_a_session_unblocks_turns_of_other_sessions(house: House) -> None:
    monday, tuesday = house.session("p-17"), house.session("p-17")
    house.say(monday)
    second, third = house.say(tuesday), house.say(tuesday)
    assert house.claim(second) is None
    with house.database.transaction() as transaction:
        transaction.sessions.delete(house.tenant_id, monday)
    assert house.sweep() == [second.id]
    assert house.done(second).earlier_summaries == ()
    assert house.done(third).earlier_summaries == turn_ids(second)


def test_the_sweeper_publishes_a_blocked_turn_only_after_it_is_unblocked(house: House) -> None:
    session = house.session()
    first, second = house.say(session), house.say(session)
    house.let_leases_run_out()
    assert house.sweep() == [first.id]
    house.let_leases_run_out()
    assert house.sweep() == [first.id]
    work = house.claim(first)
    assert work is not None
    with house.database.transaction() as transaction:  # and its worker dies before it sends for the next
        assert end_with(transaction, work.job, None, PREDICTION)
    with house.database.transaction() as transaction:
        assert second.id in [message.job_id for message in transaction.outbox.unsent(NO_TIME)]


def test_the_text_context_is_the_two_turns_before_of_any_speaker(house: House) -> None:
    session = house.session()
    greeting = house.say(session, speaker="Tom", role=SpeakerRole.agent, text="Good morning")
    answer, silence = house.say(session), house.say(session)
    written, last = house.write(session, "Are you there?"), house.say(session)
    assert house.done(greeting).context == ()
    assert house.done(answer, transcript_text="Hello").context == ("Good morning",)
    assert house.done(silence).context == ("Good morning", "Hello")
    assert house.done(written).context == ("Hello",)
    assert house.done(last).context == ("Are you there?",)
    assert house.done(house.say(session), transcript_text="Yes").context == ("Are you there?",)


@pytest.mark.parametrize("context_turns", [0, 1, 3])
def test_the_context_has_as_many_turns_as_the_bundle_asks_for(house: House, context_turns: int) -> None:
    session, texts = house.session(), ("one", "two", "three", "four")
    for text in texts:
        house.done(house.write(session, text))
    last = house.say(session)
    with house.database.transaction() as transaction:
        work = transaction.turn_results.read_work(last, "bundle", context_turns)
    assert work.context == texts[len(texts) - context_turns :]


def test_a_text_turn_waits_for_the_transcripts_of_its_context(house: House) -> None:
    session = house.session()
    spoken = house.say(session)
    house.say(session, text="sent along")
    written, next_one = house.write(session, "x"), house.write(session, "y")
    assert house.claim(written) is None
    assert house.done(next_one).context == ("sent along", "x")
    work = house.claim(spoken)
    assert work is not None
    assert written.id in (house.succeed(work, transcript_text="transcribed") or [])
    assert house.done(written).context == ("transcribed", "sent along")


def test_a_text_turn_without_context_waits_for_no_other(house: House) -> None:
    session, without = house.session(), house.session(context=False)
    house.say(session)
    house.say(without)
    assert house.done(house.write(session, "x", context=False)).context == ()
    assert house.done(house.write(without, "x")).context == ()
    with house.database.transaction() as transaction:
        assert transaction.jobs.claim(house.write(session, "x").id, LEASE, context_turns=0)


@pytest.mark.parametrize("where", ["in the same session", "in another session"])
def test_a_turn_added_while_the_earlier_one_ends_is_unblocked(house: House, where: str) -> None:
    session, other = house.session("p-17"), house.session("p-17")
    work = house.claim(house.say(session))
    assert work is not None

    def add_and_claim() -> TurnWork | None:
        return house.claim(house.say(session if where == "in the same session" else other))

    with ThreadPoolExecutor(1) as pool:
        with house.database.transaction() as ending:
            assert end_with(ending, work.job, None, PREDICTION) == []
            claimed = pool.submit(add_and_claim)
            time.sleep(0.3)  # by then it waits for us
        assert claimed.result(10) is not None


Place = tuple[int, str]
"""A session's number, and who speaks in it."""


@hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    places=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["Ana", "Ben"])), min_size=1, max_size=7),
    seed=st.integers(0, 2**16),
)
def test_any_order_of_execution_gives_the_same_baselines(house: House, places: list[Place], seed: int) -> None:
    chance = random.Random(seed)
    family = str(uuid4())
    sessions = [house.session(family), house.session(family), house.session()]
    spoken = [house.say(sessions[number], speaker=name) for number, name in places]
    read = defaultdict[UUID, set[tuple[bytes, ...]]](set)
    messages = [job.id for job in spoken]
    while messages:
        message = messages.pop(chance.randrange(len(messages)))
        if chance.random() < 0.2:
            messages.append(message)  # the broker delivers it again
        dies = chance.random() < 0.2
        work = house.claim(message, lease=NO_TIME if dies else LEASE)
        if work is not None:
            read[work.turn.id].add(work.earlier_summaries)
            messages += [message] if dies else house.succeed(work) or []
    assert {job.turn_id: {baseline} for job, baseline in zip(spoken, expected(spoken, places), strict=True)} == read
    assert all(house.status(job)[0] is JobStatus.succeeded for job in spoken)


def expected(spoken: Sequence[Job], places: Sequence[Place]) -> list[tuple[bytes, ...]]:
    """Sessions 0 and 1 are the same subject's."""

    def voice(place: Place) -> tuple[bool, str]:
        return place[0] < 2, place[1]

    return [
        turn_ids(*(spoken[before] for before in range(count) if voice(places[before]) == voice(place)))
        for count, place in enumerate(places)
    ]


class Fleet:
    """Many workers on one queue, without a sweeper: whatever ends, ends by the messages alone."""

    def __init__(self, house: House, dies: float = 0.0) -> None:
        self.house = house
        self.messages: queue.Queue[UUID] = queue.Queue()
        self.read = defaultdict[UUID, set[tuple[bytes, ...]]](set)
        self._dies = dies
        self._errors: list[Exception] = []
        self._stopping = threading.Event()

    def work(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._stopping.is_set():
            try:
                message = self.messages.get(timeout=0.05)
            except queue.Empty:
                continue
            try:
                self._take_up(message, chance)
            except Exception as error:
                self._errors.append(error)
            self.messages.task_done()

    def _take_up(self, message: UUID, chance: random.Random) -> None:
        dies = chance.random() < self._dies
        work = self.house.claim(message, lease=NO_TIME if dies else LEASE)
        if work is None:
            return
        self.read[work.turn.id].add(work.earlier_summaries)
        time.sleep(chance.random() * 0.005)
        if dies and chance.random() < 0.5:
            return
        for following in self.house.succeed(work) or []:
            self.messages.put(following)

    def run(self, workers: int, meanwhile: Callable[[ThreadPoolExecutor], None]) -> None:
        with ThreadPoolExecutor(workers) as working, ThreadPoolExecutor(8) as others:
            done = [working.submit(self.work, seed) for seed in range(workers)]
            try:
                meanwhile(others)
            finally:
                self._stopping.set()
            for future in done:
                future.result(10)
        assert self._errors == []


def in_order(settings: Settings) -> dict[UUID, tuple[bytes, ...]]:
    """What each turn ought to be read against, by the order in which the turns were accepted."""
    with psycopg.connect(settings.database.url.get_secret_value()) as connection:
        rows = connection.execute("SELECT id, scope_id, speaker, role FROM turns ORDER BY position").fetchall()
    voices = defaultdict[tuple[object, ...], list[bytes]](list)
    ought: dict[UUID, tuple[bytes, ...]] = {}
    for turn_id, *voice in rows:
        ought[turn_id] = tuple(voices[tuple(voice)])
        voices[tuple(voice)].append(turn_id.bytes)
    return ought


def test_turns_added_while_others_end_are_all_analysed(house: House, settings: Settings) -> None:
    fleet = Fleet(house)
    sessions = [house.session("p-17"), house.session("p-17"), house.session("p-17"), house.session()]

    def speak(number: int) -> None:
        chance = random.Random(number)
        for _ in range(10):
            role = chance.choice([SpeakerRole.customer, SpeakerRole.agent])
            job = house.say(sessions[number % len(sessions)], role=role)
            fleet.messages.put(job.id)

    def arrive(pool: ThreadPoolExecutor) -> None:
        list(pool.map(speak, range(8)))
        fleet.messages.join()

    fleet.run(8, arrive)
    ought = in_order(settings)
    assert len(ought) == 80
    assert fleet.read == {turn_id: {baseline} for turn_id, baseline in ought.items()}


def test_workers_that_die_change_no_baseline(house: House, settings: Settings) -> None:
    fleet = Fleet(house, dies=0.3)
    sessions = [house.session("p-17"), house.session("p-17"), house.session()]
    spoken = [house.say(session) for _ in range(8) for session in sessions]

    def sweep(_: ThreadPoolExecutor) -> None:
        deadline = time.monotonic() + 30
        while any(house.status(job)[0] is not JobStatus.succeeded for job in spoken):
            assert time.monotonic() < deadline, "waited in vain"
            with house.database.transaction() as transaction:
                transaction.jobs.sweep(lease=LEASE, retries=Settings(jobs=JobSettings(max_attempts=1000)).retries)
                messages = transaction.outbox.unsent(NO_TIME)
                transaction.outbox.remove(messages)
            for message in messages:
                fleet.messages.put(message.job_id)

    fleet.run(6, sweep)
    assert fleet.read == {turn_id: {baseline} for turn_id, baseline in in_order(settings).items()}


def test_sessions_deleted_during_analysis_block_no_other_turn(house: House) -> None:
    fleet = Fleet(house)
    kept = house.session("p-17")
    deleted = [house.session("p-17") for _ in range(4)]
    for _ in range(6):
        for session in (*deleted, kept):
            fleet.messages.put(house.say(session).id)

    def delete(session_id: UUID) -> None:
        time.sleep(random.random() * 0.1)
        with house.database.transaction() as transaction:
            transaction.sessions.delete(house.tenant_id, session_id)

    def meanwhile(pool: ThreadPoolExecutor) -> None:
        list(pool.map(delete, deleted))
        fleet.messages.join()
        while messages := house.sweep():  # sends for whoever waited for a turn that was deleted
            for job_id in messages:
                fleet.messages.put(job_id)
            fleet.messages.join()

    fleet.run(4, meanwhile)
    with house.database.transaction() as transaction:
        history = transaction.turns.history(house.tenant_id, kept, -1, 100)
    assert [turn.job.status for turn in history] == [JobStatus.succeeded] * 6
