"""Whole or not at all: hooks do nothing until every process has said that all of its hooks are in place.

SGLang applies hooks after plugins have registered them, each on its own, and only logs those that fail; and the
tokenizer and the ranks are processes that each do this for themselves. So a hook of the adapter passes everything
through until its process is *active*:

- A rank looks, when SGLang asks it whether it is ready (``Scheduler.get_init_info``), whether all hooks are in place
  and the configuration is one that the plugin serves. If so it becomes active, joins, and its answer says where it is
  reached; else why not.
- The tokenizer's process gets these answers before the first request (``_wait_for_scheduler_ready``), takes what is
  ours out of them, and becomes active if every rank has said yes and it finds the same of itself. Then it opens the
  arena, on a thread, and tells the ranks.

Invariant: the tokenizer sends a handle only if all ranks of its server are active. Until a rank has received a handle
its hooks must do nothing, since another rank may not be active.
"""

from __future__ import annotations

import inspect
import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coatcheck import __version__
from coatcheck.errors import ConfigError
from coatcheck.integrations.sglang import support
from coatcheck.integrations.sglang.targets import RANK_READY, SEND_BATCH, SEND_ONE, WAIT_FOR_RANKS

Hook = Callable[..., Any]  # hook(original, *args, **kwargs), around ``original``

SAID = "COATCHECK_STOOD_ASIDE"  # environment, so that child processes inherit it: the reason that was logged
_ANSWER = "coatcheck"  # key in what a rank tells when it is ready
_NOT_ASKED = f"SGLang did not apply the hook on {WAIT_FOR_RANKS}, or starts its ranks another way"
_SENDS = (SEND_ONE, SEND_BATCH)

logger = logging.getLogger(__name__)


def stand_aside(reason: str) -> None:
    """Says so: once for a server, although each of its processes finds the same."""
    if os.environ.get(SAID) == reason:
        return
    os.environ[SAID] = reason
    logger.warning(
        "coatcheck stands aside, and SGLang works as without it: %s. 'coatcheck doctor' looks at all of it.", reason
    )


@dataclass(frozen=True)
class Facts:
    """What a rank tells of itself when it is ready. Builtins only: it is pickled between processes."""

    tickets: str  # where it takes them
    pid: int
    pool_tokens: int  # of the KV pool
    running: int  # requests at once, at most
    input_tokens: int  # of a request, at most
    token_bytes: int  # of float32 features behind a token of an image
    whole: bool  # its model's images may be compact
    server: str  # what tells this server from another of the same process; empty but on the entry rank


class RollCall:
    """One process's hooks; ``hooks`` is what to register, by path, each AROUND its target.

    A process that stood aside for one server does so for all that it starts later: hooks are the process's. One that is
    active stays so for the servers that it has started.
    """

    def __init__(
        self, adapter: Mapping[str, Hook], join: Callable[[Any], Facts], opened: Callable[[Sequence[Facts]], None]
    ) -> None:
        """``adapter``: the hooks that pass through until this process is active.

        ``join``: on a rank, once it is active, with its scheduler. ``opened``: in the tokenizer's process, once it is
        active, with all ranks'; must not block.
        """
        self.hooks: dict[str, Hook] = {path: self._guarded(path, hook) for path, hook in adapter.items()}
        self.hooks[RANK_READY] = self._answer
        self.hooks[WAIT_FOR_RANKS] = self._call
        self._join, self._opened = join, opened
        self._refusal: str | None = None  # why this process does not take part; "": it is active; None: not known yet

    def _guarded(self, path: str, hook: Hook) -> Hook:
        def guarded(original: Hook, *args: Any, **kwargs: Any) -> Any:
            if self._refusal == "":
                return hook(original, *args, **kwargs)
            if self._refusal is None and path in _SENDS:
                self._refusal = _NOT_ASKED
                stand_aside(_NOT_ASKED)
            return original(*args, **kwargs)

        return guarded

    def _answer(self, original: Hook, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        """On a rank, when its model is loaded."""
        info = original(scheduler, *args, **kwargs)
        facts: dict[str, Any] = {}
        self._refusal = self._refusal or self._problem()
        if not self._refusal:
            try:
                facts = asdict(self._join(scheduler))
            except Exception as error:  # SGLang starts, whatever this is
                self._refusal = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        info[_ANSWER] = (__version__, self._refusal, facts)
        return info

    def _call(self, original: Hook, *args: Any, **kwargs: Any) -> Any:
        """In the tokenizer's process, when all ranks have answered."""
        infos = original(*args, **kwargs)
        answers = [info.pop(_ANSWER, None) for info in infos]
        heard = next(filter(None, map(_objection, range(len(answers)), answers)), "")
        refusal = self._refusal or self._problem() or heard
        if not refusal:
            try:
                self._opened([Facts(**facts) for _, _, facts in answers])
                if support.published()[support.BROADCAST]:
                    logger.info("--enable-broadcast-mm-inputs-process: what coatcheck carries is not broadcast again")
            except Exception as error:
                refusal = f"{type(error).__name__}: {error}"
        if refusal:
            stand_aside(refusal)
        if self._refusal != "":  # an earlier server of this process goes on, whatever this one is
            self._refusal = refusal
        return infos

    def _problem(self) -> str:
        """Why this process cannot take part; empty if it can."""
        try:
            problems = [*filter(None, (_missing(path, hook) for path, hook in self.hooks.items()))]
            return "; ".join(problems or support.obstacles(support.published()))
        except Exception as error:  # SGLang starts, whatever this is
            return f"{type(error).__name__}: {error}"


def _objection(rank: int, answer: Any) -> str:
    if answer is None:
        return f"scheduler {rank} did not say that it takes part"
    version, problem, *_ = answer
    if version != __version__:
        return f"scheduler {rank} has coatcheck {version}, the tokenizer {__version__}"
    return f"scheduler {rank}: {problem}" if problem else ""


def _missing(path: str, hook: Hook) -> str:
    """Why the hook is not in place, alone, at its path; empty if it is.

    Seen from the function that callers will get, not from SGLang's books: a target that was patched before we
    registered, or a class that somebody replaced, looks as if it had been hooked there.
    """
    framework = inspect.getsourcefile(sys.modules["sglang.srt.plugins.hook_registry"])
    wrappers = [layer for layer in _layers(pkgutil.resolve_name(path)) if layer.__code__.co_filename == framework]
    if not any(_calls(wrapper, hook) for wrapper in wrappers):
        return f"SGLang did not apply the hook on {path}"
    return "" if len(wrappers) == 1 else f"another plugin hooks {path}, too"


def _layers(function: Any) -> Iterator[Any]:
    """The function and what it wraps, outermost first."""
    while function is not None:
        if inspect.isfunction(function):
            yield function
        function = getattr(function, "__wrapped__", None)


def _calls(wrapper: Any, hook: Hook) -> bool:
    """True if the wrapper was made for this hook: it is one of the variables that it was closed over."""
    return any(cell.cell_contents is hook for cell in wrapper.__closure__ or ())
