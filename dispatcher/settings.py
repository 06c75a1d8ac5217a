"""The settings of an operator. The CLI makes its flags from this class; the service has no other settings."""

import os
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

__all__ = ["AUTO", "OFF", "Address", "Settings"]

AUTO: Final = "auto"
OFF: Final = "off"

_SHORTEST_TOKEN: Final = 16

MOST_PARTITIONS: Final = 256
"""Maximum number of partitions. Without Kafka, each partition has a change stream that reads the whole oplog."""

MOST_PROCESSES: Final = 64
"""Maximum number of processes. Each process has its own connections, and one supervisor watches all processes."""


class Address(NamedTuple):
    """The address to listen at. Port 0 means a free port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parse `HOST:PORT` or `:PORT`. Without a host, the address is 127.0.0.1, not every interface.

        Raises:
            ValueError: the text is not an address.
        """
        host, colon, port = text.rpartition(":")
        if not colon or not port.isdecimal() or int(port) > 65_535:
            raise ValueError(f"{text!r} is not HOST:PORT, 'auto' or 'off'")
        return cls(host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port))


class Settings(BaseModel):
    """Settings of one dispatcher process; each has an environment variable `DISPATCHER_<NAME>`.

    A setting that is not passed as an argument gets the value of its variable.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str | None = Field(
        default=None, description="Connect to this URL instead of the registry's. Receivers use it too."
    )
    deliver_everything: bool = Field(
        default=False,
        description="Accept a registry that is not dispatched. The application's own writes are then "
        "delivered too.",
    )
    concurrency: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="Maximum number of deliveries at the same time. Each document has at most one delivery at a "
        "time.",
    )
    max_queued: int = Field(
        default=2_000,
        ge=1,
        description="Maximum number of changes that are read ahead. Slow receivers slow down the reading.",
    )
    max_queued_mb: int = Field(
        default=16, ge=1, description="Maximum megabytes of change events that are read ahead."
    )
    batch_size: int = Field(
        default=4_000,
        ge=1,
        le=100_000,
        description="Maximum number of change events in one batch from the server.",
    )
    attempts: int = Field(
        default=5,
        ge=1,
        description="Attempts at a delivery whose receiver raises, unless the receiver has retry=.",
    )
    timeout: float = Field(
        default=30.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which a running receiver is cancelled and counts as failed, unless it has "
        "timeout=; at most 50 for transactional receivers.",
    )
    park_after: float = Field(
        default=5.0,
        ge=0,
        allow_inf_nan=False,
        description="A delivery waits in MongoDB, and not in memory, if its next attempt would start more than "
        "this number of seconds after the start of its first attempt. Later deliveries of the same document to "
        "the same receiver wait with it.",
    )
    slow_after: float = Field(
        default=5.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which the log names a receiver that still runs.",
    )
    block_after: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which the log names a receiver that blocks the event loop.",
    )
    grace: float = Field(
        default=30.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds for which running deliveries may continue after SIGTERM.",
    )
    save_interval: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="Seconds between two saves of the position."
    )
    idle_save_interval: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds between two saves while nothing is delivered, so that the position stays in the "
        "oplog.",
    )
    connect_timeout: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds to wait for the server at the start. A running dispatcher waits for ever.",
    )
    on_history_lost: Literal["fail", "resume", "backfill"] = Field(
        default="fail",
        description="If the oplog does not reach back to the position: fail ends with exit code 17; resume "
        "continues from now, and records a gap; backfill does the same as resume, and also delivers the current "
        "documents. A relay has no backfill.",
    )
    state_database: str = Field(
        default="mongoz_dispatcher",
        pattern=r"^[A-Za-z0-9_-]{1,38}$",  # all deployments allow these characters and this length
        description="The database that holds the dispatcher's state.",
    )
    kafka: str | None = Field(
        default=None,
        description="Read the changes from the topic of a relay on these brokers of Kafka, HOST:PORT,..., instead "
        "of from change streams. It needs the extra kafka.",
    )
    kafka_topic: str = Field(
        default="mongoz.changes",
        pattern=r"^[A-Za-z0-9._-]{1,249}$",
        description="The topic of the relay, with --kafka.",
    )
    kafka_config: Path | None = Field(
        default=None,
        description="A file with properties of librdkafka, for example for TLS and passwords, with --kafka.",
    )
    partitions: int | None = Field(
        default=None,
        ge=1,
        le=MOST_PARTITIONS,
        description="Divide the work into this number of partitions, 1 to 256. At most this number of processes "
        "can share the work. Each partition has a change stream, for which the server reads the whole oplog. By "
        "default the number stays as it is; a new group has the number of --processes.",
    )
    processes: str = Field(
        default="1",
        description="Number of processes on this machine, 1 to 64, under one supervisor. auto means one "
        "process for each core, but at most 2 without --kafka. A new group gets the same number of partitions. "
        "For more than 4 processes, a new group needs --partitions.",
    )
    adopt: bool = Field(
        default=False,
        description="Accept a group that this application used before the application was renamed.",
    )
    lease: float = Field(
        default=10.0,
        ge=0.5,
        le=3_600.0,
        description="Seconds after which other processes take over the partitions of a process that is dead "
        "or cut off.",
    )
    delivery_retention: float = Field(
        default=14.0,
        ge=1.0,
        le=3_650.0,
        description="Days to keep records of transactional deliveries, and claims of processes that have ended. "
        "This time must be longer than the oplog reaches back.",
    )
    claim_timeout: float = Field(
        default=15.0,
        ge=1.0,
        le=3_600.0,
        description="Seconds after which the deliveries of a writing process that is dead or cut off are taken "
        "over. If the process has a longer timeout, the longer one applies.",
    )
    dead_letter_retention: float = Field(
        default=90.0,
        ge=0.0,
        le=36_500.0,
        description="Days that dead letters are kept after their last attempt. 0 keeps them for ever.",
    )
    http: str = Field(
        default=AUTO,
        description="Where probes, metrics and status are served: HOST:PORT, with port 0 for a free port; "
        "auto is 127.0.0.1:8787, or a free port if that one is in use; off does not listen.",
    )
    http_token: SecretStr | None = Field(
        default=None,
        description="Token that HTTP clients must send to change something or to read documents. Without a token "
        "no client can change anything, and only clients on this machine can read documents.",
    )
    traces: bool = Field(
        default=False,
        description="Write an OpenTelemetry span for each attempt. It needs the extra otel. OTEL_... "
        "variables say where spans go.",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", description="console, json or auto. auto is console on a terminal, otherwise json."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error. debug has a line for each delivery."
    )

    @staticmethod
    def variable_of(name: str) -> str:
        """The environment variable of a setting."""
        return f"DISPATCHER_{name.upper()}"

    @model_validator(mode="before")
    @classmethod
    def _with_environment(cls, values: dict[str, Any]) -> dict[str, Any]:
        found = {name: os.environ.get(cls.variable_of(name)) for name in cls.model_fields if name not in values}
        return {**values, **{name: text for name, text in found.items() if text is not None}}

    @field_validator("http_token")
    @classmethod
    def _is_no_guess(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():  # compose files set missing variables to ""
            return None
        if len(value.get_secret_value()) < _SHORTEST_TOKEN:
            raise ValueError(f"a token has at least {_SHORTEST_TOKEN} characters, so that it can't be guessed")
        return value

    @field_validator("processes")
    @classmethod
    def _is_auto_or_a_number(cls, value: str) -> str:
        if value != AUTO and not (value.isdecimal() and 1 <= int(value) <= MOST_PROCESSES):
            raise ValueError(f"{value!r} is neither a number from 1 to {MOST_PROCESSES} nor 'auto'")
        return value

    @field_validator("http")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value not in (AUTO, OFF):
            Address.parse(value)
        return value
