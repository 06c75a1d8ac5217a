"""What an operator can set. The CLI makes its flags from this class; the service reads nothing else."""

from typing import Final, Literal, NamedTuple

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from dispatcher.core.partitions import MOST

__all__ = ["AUTO", "OFF", "Address", "Settings"]

AUTO: Final = "auto"
OFF: Final = "off"

_SHORTEST_TOKEN: Final = 16


class Address(NamedTuple):
    """Where to listen. Port 0 is a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """From `HOST:PORT`, without a host from `:PORT`: then it is 127.0.0.1, not every interface.

        Raises:
            ValueError: it is none.
        """
        host, colon, port = text.rpartition(":")
        if not colon or not port.isdecimal() or int(port) > 65_535:
            raise ValueError(f"{text!r} is not HOST:PORT, 'auto' or 'off'")
        return cls(host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port))


class Settings(BaseSettings):
    """Settings of one dispatcher process; each has an environment variable `DISPATCHER_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="DISPATCHER_", frozen=True, extra="forbid")

    url: str | None = Field(
        default=None, description="Connect here instead of to the URL of the application's registry."
    )
    deliver_everything: bool = Field(
        default=False,
        description="Accept a registry that is not dispatched: the application's own writes are delivered too.",
    )
    concurrency: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="Deliveries in flight at most; one document has one at a time.",
    )
    max_queued: int = Field(
        default=1_000, ge=1, description="Changes read ahead at most; slow receivers slow the reading down."
    )
    max_queued_mb: int = Field(default=16, ge=1, description="Megabytes of change events read ahead at most.")
    batch_size: int = Field(
        default=1_000, ge=1, le=100_000, description="Change events fetched from the server at once, at most."
    )
    attempts: int = Field(
        default=5,
        ge=1,
        description="Attempts at a delivery whose receiver raises, unless its retry= says otherwise.",
    )
    timeout: float = Field(
        default=30.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which a hanging receiver is cancelled and counts as failed, unless it has a "
        "timeout= itself; at most 50 for transactional ones.",
    )
    park_after: float = Field(
        default=5.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds after its first attempt began from which on a delivery waits for its next one in "
        "MongoDB, with those behind it, and not in memory.",
    )
    slow_after: float = Field(
        default=5.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which a receiver that is still at work is slow, and named in the log.",
    )
    block_after: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which a receiver that keeps the event loop from turning is named in the log.",
    )
    grace: float = Field(
        default=30.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that deliveries in flight are given to end at SIGTERM.",
    )
    save_interval: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="Seconds between two saves of the position."
    )
    idle_save_interval: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="The same while nothing is delivered, so that the position does not age.",
    )
    connect_timeout: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds to wait for the server at the start. Later it waits for ever.",
    )
    on_history_lost: Literal["fail", "resume", "backfill"] = Field(
        default="fail",
        description="When the oplog does not reach back to the position: fail: end with exit code 17; resume: "
        "continue from now, and note the gap; backfill: deliver the current documents as well.",
    )
    state_database: str = Field(
        default="mongoz_dispatcher",
        pattern=r"^[A-Za-z0-9_-]{1,38}$",  # no deployment allows fewer characters
        description="The database that holds the dispatcher's state.",
    )
    partitions: int | None = Field(
        default=None,
        ge=1,
        le=MOST,
        description="Divide the work into so many parts, which as many processes can share. Without it: as it is.",
    )
    adopt: bool = Field(
        default=False,
        description="Accept a group of an application with another name: this one, before it was renamed.",
    )
    lease: float = Field(
        default=10.0,
        ge=0.5,
        le=3_600.0,
        description="Seconds after which other processes take over what a process held that is dead or cut off.",
    )
    delivery_retention: float = Field(
        default=14.0,
        ge=1.0,
        le=3_650.0,
        description="Days that records of transactional deliveries are kept: longer than the oplog reaches back.",
    )
    dead_letter_retention: float = Field(
        default=90.0,
        ge=0.0,
        le=36_500.0,
        description="Days that dead letters are kept after their last attempt; 0 keeps them for ever.",
    )
    http: str = Field(
        default=AUTO,
        description="HOST:PORT for probes, metrics and status, port 0 for a free one; auto: 127.0.0.1:8787, or a "
        "free port where that is taken; off: nothing listens.",
    )
    http_token: SecretStr | None = Field(
        default=None,
        description="What a client must know to change something over HTTP, or to see documents there. Without it "
        "nobody can change anything, and only this machine sees documents.",
    )
    traces: bool = Field(
        default=False,
        description="Write an OpenTelemetry span for each delivery; needs the extra otel. OTEL_... variables say "
        "where to.",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto: console on a terminal, else json."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug has a line for each delivery."
    )

    @field_validator("http_token")
    @classmethod
    def _is_no_guess(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():  # compose files set variables to nothing
            return None
        if len(value.get_secret_value()) < _SHORTEST_TOKEN:
            raise ValueError(f"a token has at least {_SHORTEST_TOKEN} characters, so that nobody guesses it")
        return value

    @field_validator("http")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value not in (AUTO, OFF):
            Address.parse(value)
        return value
