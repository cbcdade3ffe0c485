"""The plugin's settings. SGLang's command line is not ours to extend: they are environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coatcheck.errors import ConfigError

PREFIX = "COATCHECK_SGLANG_"
ENABLED = f"{PREFIX}ENABLED"
ARENA_MIB = f"{PREFIX}ARENA_MIB"
SHARE = f"{PREFIX}SHARE"
MODE = f"{PREFIX}MODE"
WORKERS = f"{PREFIX}WORKERS"
POISON = f"{PREFIX}POISON"
MODES = ("whole", "carry")
_MOST_WORKERS = 256
AUTO = "auto"
_MOST_MIB = 1 << 20  # 1 TiB: more is a slip of the pen, and would be taken at once


@dataclass(frozen=True)
class Variable:
    """One setting, as documents and messages name it."""

    name: str
    default: str
    allowed: str
    what: str


VARIABLES = (
    Variable(ENABLED, "1", "0 or 1", "0: the plugin registers nothing, and SGLang works as without it"),
    Variable(
        ARENA_MIB,
        AUTO,
        f"{AUTO}, or whole numbers, 1 to {_MOST_MIB}",
        "MiB of shared memory for payloads, taken when the server starts; auto: what requests can fill, "
        "but at most a quarter of the memory to be had, and 16 GiB. A request without room takes SGLang's own path",
    ),
    Variable(
        MODE,
        "whole",
        " or ".join(MODES),
        "whole: workers decode and resize the images of models of the Qwen-VL family. carry, and what workers do not "
        "take: SGLang's own processor makes the features, and the plugin carries them",
    ),
    Variable(
        WORKERS,
        AUTO,
        f"{AUTO}, or whole numbers, 1 to {_MOST_WORKERS}",
        "processes that decode and resize images in mode whole; auto: the number of cores minus the number of ranks "
        "minus 1, between 1 and 8",
    ),
    Variable(
        SHARE,
        "1",
        "0 to 1",
        "share of the requests that may take this path, chosen by a hash of the request's id; the others take SGLang's",
    ),
    Variable(
        POISON,
        "0",
        "0 or 1",
        "1: memory of the arena that is given back is overwritten at once, for tests: whoever reads it too late gets "
        "wrong answers",
    ),
)


@dataclass(frozen=True)
class Settings:
    """As read. Sizes in bytes."""

    enabled: bool
    arena_bytes: int | None  # None: as much as the server and the machine make sensible
    share: float  # 0 to 1
    whole: bool  # mode whole, else carry
    workers: int | None  # None: by the cores
    poison: bool = False  # overwrite what is given back


def read(environ: Mapping[str, str]) -> Settings:
    """Raises ConfigError that names the variable and what is allowed, also for a name that nobody reads."""
    known = {variable.name: variable for variable in VARIABLES}
    unknown = sorted(name for name in environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise ConfigError(f"{unknown[0]}: there is no such setting; there are {', '.join(known)}")
    text = {name: environ.get(name, variable.default) for name, variable in known.items()}

    def refuse(name: str) -> ConfigError:
        return ConfigError(f"{name}: {text[name]!r} is not allowed; allowed: {known[name].allowed}")

    for switch in (ENABLED, POISON):
        if text[switch] not in ("0", "1"):
            raise refuse(switch)
    if text[MODE] not in MODES:
        raise refuse(MODE)

    def number(name: str, most: int) -> int | None:
        given = text[name]
        if given == AUTO:
            return None
        if not (given.isascii() and given.isdigit() and 1 <= int(given) <= most):
            raise refuse(name)
        return int(given)

    size, workers = number(ARENA_MIB, _MOST_MIB), number(WORKERS, _MOST_WORKERS)
    try:
        share = float(text[SHARE])
    except ValueError:
        raise refuse(SHARE) from None
    if not 0 <= share <= 1:
        raise refuse(SHARE)
    arena = None if size is None else size << 20
    return Settings(text[ENABLED] == "1", arena, share, text[MODE] == "whole", workers, text[POISON] == "1")


def table() -> str:
    """The settings as Markdown, for docs/sglang.md."""
    rows = [f"| `{v.name}` | {v.default} | {v.allowed} | {v.what} |\n" for v in VARIABLES]
    return "".join(["| variable | default | allowed | what |\n", "|---|---|---|---|\n", *rows])
