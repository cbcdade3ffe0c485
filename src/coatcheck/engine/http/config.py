"""Options of the front end: its own, and those of the intake."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coatcheck.intake.config import PoolConfig
from coatcheck.intake.limits import MEBI, MediaLimits, require


@dataclass(frozen=True, kw_only=True)
class FrontendConfig(MediaLimits, PoolConfig):
    """With the limits of the intake. Times in seconds, sizes in bytes; an impossible value raises ConfigError."""

    model_dir: Path  # local Hugging Face directory: config, tokenizer.json, chat template, preprocessor_config
    model_name: str  # the name clients give as ``model``
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    strategy: str = "auto"  # of requests that ask for none, at first; whether it exists the strategies check
    strategy_header: bool = False  # a request may ask for a strategy, and every answer says which was used
    verify: bool = False  # debug: have the ranks compare the inputs that they consume, request by request
    max_body_bytes: int = 64 * MEBI
    max_held_bytes: int = 2048 * MEBI  # bodies and payloads in flight that no rank has taken yet, before 503
    arena_bytes: int = 1024 * MEBI  # shared memory for payloads, taken at start; 0: none, and no handles
    request_timeout_s: float = 300.0  # from the first byte to the last token
    shutdown_timeout_s: float = 10.0  # what is running may finish within this
    default_max_tokens: int = 256  # where the client gives none; clipped to what the context leaves
    default_temperature: float | None = None  # None: the model's generation_config.json, else 1 as at OpenAI
    context: int | None = None  # tokens of prompt and answer together; None: max_position_embeddings of config.json

    def __post_init__(self) -> None:
        MediaLimits.__post_init__(self)
        PoolConfig.__post_init__(self)
        require("model-name", self.model_name, bool(self.model_name), "any name but the empty one")
        require("port", self.port, 0 <= self.port <= 65535, "0 to 65535")
        for name in ("max_body_bytes", "max_held_bytes"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("request", "shutdown"):
            seconds = getattr(self, f"{name}_timeout_s")
            require(f"{name}_timeout", seconds, 0 < seconds <= 86400, "above 0, at most 86400 seconds")
        require("arena-bytes", self.arena_bytes, self.arena_bytes >= 0, "0 or more")
        require("default-max-tokens", self.default_max_tokens, self.default_max_tokens >= 1, "1 or more")
        temperature = self.default_temperature
        require("default-temperature", temperature, temperature is None or 0 <= temperature <= 2, "0 to 2")
        require("context", self.context, self.context is None or self.context >= 2, "2 or more")
