"""What an operator can set. The CLI makes its flags from this class; the service reads nothing else."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["Settings"]


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
    state_database: str = Field(
        default="mongoz_dispatcher",
        pattern=r"^[A-Za-z0-9_-]{1,38}$",  # no deployment allows fewer characters
        description="The database that holds the dispatcher's state.",
    )
    delivery_retention: float = Field(
        default=14.0,
        ge=1.0,
        le=3_650.0,
        description="Days that records of transactional deliveries are kept: longer than the oplog reaches back.",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto: console on a terminal, else json."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug has a line for each delivery."
    )
