"""Options of the ranks."""

from __future__ import annotations

from dataclasses import dataclass

from coatcheck.errors import ConfigError

AUTO_TIMINGS = ("measured", "inline", "background")


@dataclass(frozen=True)
class RankConfig:
    """See the comments; an impossible value raises ConfigError naming the option. Times in seconds."""

    ready_timeout_s: float = 30.0  # bound on waiting for every rank's Ready of one request
    heartbeat_s: float = 10.0  # a quiet entry rank sends an empty plan this often, or the process groups time out
    group_timeout_s: float = 120.0  # bound on every collective: a rank that hangs longer counts as lost

    waiting_payload_bytes: int = (
        1 << 30
    )  # payloads of requests not admitted yet that each rank holds (one request at least)
    auto_inside_bytes: int | None = None  # under auto, payloads up to this ride beside the request; None: measured
    auto_timing: str = "measured"  # under auto: by load and measured costs, or always inline or background
    trace: str = ""  # directory for traces (see coatcheck.engine.ranks.trace); empty: none

    def __post_init__(self) -> None:
        for name in ("ready_timeout_s", "heartbeat_s", "group_timeout_s"):
            if getattr(self, name) <= 0:
                option = name.removesuffix("_s").replace("_", "-")
                raise ConfigError(f"--{option}: {getattr(self, name)} is not a positive number of seconds")
        if self.waiting_payload_bytes < 0:
            raise ConfigError(f"--waiting-payload-mib: {self.waiting_payload_bytes >> 20} is less than 0")
        if self.auto_inside_bytes is not None and self.auto_inside_bytes < 0:
            raise ConfigError(f"--auto-threshold-kib: {self.auto_inside_bytes >> 10} is less than 0")
        if self.auto_timing not in AUTO_TIMINGS:
            raise ConfigError(f"--auto-timing: {self.auto_timing!r} is not one of {', '.join(AUTO_TIMINGS)}")
        if self.heartbeat_s * 2 > self.group_timeout_s:
            raise ConfigError(
                f"--heartbeat: {self.heartbeat_s:g} s is more than half of --group-timeout ({self.group_timeout_s:g} s)"
            )
