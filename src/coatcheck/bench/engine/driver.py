"""How a round asks: the interface behind which a whole server or bare ranks stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass
class Heard:
    """What became of one request. Times in seconds on the host's monotonic clock."""

    name: str = ""  # as the ranks know it
    sent: float = 0.0
    times: list[float] = field(default_factory=list)  # of each message that brought tokens
    said: str = ""  # the tokens, or their text
    error: str | None = None


class Driver(Protocol):
    """An engine that is up."""

    def payload_bytes(self, strategy: str) -> int:
        """Of one request, as the ranks receive it under that strategy."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Of one request, images included; 0 before the first answer if only answers tell."""
        ...

    def pids(self) -> dict[str, int]:
        """The engine's processes by name."""
        ...

    async def ask(self, index: int, strategy: str) -> Heard:
        """Request ``index`` of the workload, to its end. A failure is an ``error``, not an exception."""
        ...
