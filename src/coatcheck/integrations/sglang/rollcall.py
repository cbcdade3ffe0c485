"""Whole or not at all: hooks do nothing until every process has said that all of its hooks are in place.

SGLang applies hooks after plugins have registered them, each on its own, and only logs those that fail; and the
tokenizer and the ranks are processes that each do this for themselves. So a hook of the adapter passes everything
through until its process is *active*:

- A rank looks, when SGLang asks it whether it is ready (``Scheduler.get_init_info``), whether all hooks are in place
  and the configuration is one that the plugin serves. It becomes active if so, and its answer says so, or why not.
- The tokenizer's process gets these answers before the first request (``_wait_for_scheduler_ready``), takes what is
  ours out of them, and becomes active if every rank has said yes and it finds the same of itself.

Invariant: the tokenizer sends a handle only if all ranks of its server are active. What an adapter's hook does on a
rank before it has seen a handle must therefore be nothing, since another rank may not be active.
"""

from __future__ import annotations

import inspect
import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from coatcheck import __version__
from coatcheck.integrations.sglang import support
from coatcheck.integrations.sglang.targets import RANK_READY, SEND_BATCH, SEND_ONE, WAIT_FOR_RANKS

Hook = Callable[..., Any]  # hook(original, *args, **kwargs), around ``original``

SAID = "COATCHECK_STOOD_ASIDE"  # environment, so that child processes inherit it: the reason that was logged
_ANSWER = "coatcheck"  # key in what a rank tells when it is ready: (our version, why it cannot take part or "")
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


class RollCall:
    """One process's hooks; ``hooks`` is what to register, by path, each AROUND its target.

    A process that stood aside for one server does so for all that it starts later: hooks are the process's.
    """

    def __init__(self, adapter: Mapping[str, Hook], welcome: str) -> None:
        """``adapter``: the hooks that pass through until this process is active; ``welcome``: what to log then."""
        self.hooks: dict[str, Hook] = {path: self._guarded(path, hook) for path, hook in adapter.items()}
        self.hooks[RANK_READY] = self._answer
        self.hooks[WAIT_FOR_RANKS] = self._call
        self._welcome = welcome
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

    def _answer(self, original: Hook, *args: Any, **kwargs: Any) -> Any:
        """On a rank, when its model is loaded."""
        info = original(*args, **kwargs)
        self._refusal = self._refusal or self._problem()
        info[_ANSWER] = (__version__, self._refusal)
        return info

    def _call(self, original: Hook, *args: Any, **kwargs: Any) -> Any:
        """In the tokenizer's process, when all ranks have answered."""
        infos = original(*args, **kwargs)
        answers = [info.pop(_ANSWER, None) for info in infos]
        heard = next(filter(None, map(_objection, range(len(answers)), answers)), "")
        self._refusal = self._refusal or self._problem() or heard
        if self._refusal:
            stand_aside(self._refusal)
        else:
            logger.info("coatcheck carries multimodal inputs to %d ranks: %s", len(infos), self._welcome)
            if support.published()[support.BROADCAST]:
                logger.info("--enable-broadcast-mm-inputs-process: what coatcheck carries is not broadcast again")
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
    version, problem = answer
    if problem:
        return f"scheduler {rank}: {problem}"
    return "" if version == __version__ else f"scheduler {rank} has coatcheck {version}, the tokenizer {__version__}"


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
