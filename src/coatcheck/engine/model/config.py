"""Options of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from coatcheck.errors import ConfigError


def _default_model() -> Path:
    """The directory of coatcheck-default-model: in the checkout, if this is one, else as installed.

    Where it is neither, a directory that does not exist: whoever names a model of their own does without it.
    """
    package = "coatcheck_default_model"
    in_checkout = Path(__file__).parents[4] / "default_model" / package
    if in_checkout.is_dir():
        return in_checkout
    found = find_spec(package)  # looks for it, imports nothing
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else in_checkout


DEFAULT_MODEL = _default_model()

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
RUNNERS = ("model", "null")


@dataclass(frozen=True)
class EngineConfig:
    """See the comments; an impossible value raises ConfigError naming the option."""

    model: Path = DEFAULT_MODEL  # directory of a Qwen2.5-VL checkpoint in Hugging Face format
    device: str = "auto"  # cuda where there is a GPU for every rank, else cpu
    dtype: str = "auto"  # float32 on the CPU, the checkpoint's own on a GPU
    max_running: int = 16  # requests that run at once
    kv_tokens: int = 32_768  # KV cache of all running requests together: prompt + max_tokens each
    chunk_tokens: int = 512  # tokens computed per step, prefill and decode together
    encode_patches: int = 4_096  # image patches encoded per step (one image at least): bounds how long decoding waits
    embedding_cache_bytes: int = 256 << 20  # of vision embeddings that each rank keeps, on the model's device; 0: none
    runner: str = "model"  # null: no forward pass, a sleep (see coatcheck.engine.model.null)
    step_ms: float = 0.0  # the null runner's sleep

    def __post_init__(self) -> None:
        if self.model == DEFAULT_MODEL and not DEFAULT_MODEL.is_dir():
            raise ConfigError(
                "--model: the default model is not installed; pip install coatcheck-default-model, "
                "or give the directory of a Qwen2.5-VL checkpoint"
            )
        for name, allowed in (("device", DEVICES), ("dtype", DTYPES), ("runner", RUNNERS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"--{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name in ("max_running", "kv_tokens", "chunk_tokens", "encode_patches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')}: {getattr(self, name)} is less than 1")
        if self.embedding_cache_bytes < 0:
            raise ConfigError(f"--embedding-cache-mib: {self.embedding_cache_bytes >> 20} is less than 0")
        if self.step_ms < 0:
            raise ConfigError(f"--step-ms: {self.step_ms} is less than 0")
        if self.chunk_tokens < self.max_running:
            raise ConfigError(
                f"--chunk-tokens: {self.chunk_tokens} is less than --max-running ({self.max_running}), "
                "so that not every request could decode in a step"
            )
