"""Hooks whole or none, whatever SGLang is installed and whichever of its hooks it applies."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import pickle
import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from coatcheck import __version__
from coatcheck.errors import ConfigError
from coatcheck.integrations.sglang import plugin, rollcall, support
from coatcheck.integrations.sglang.rollcall import Facts
from coatcheck.integrations.sglang.settings import Settings
from coatcheck.integrations.sglang.support import BROADCAST, LIMITS, UNNAMED
from coatcheck.integrations.sglang.targets import (
    ABORT,
    HOOKED,
    INPUTS,
    RANK_READY,
    RECEIVE,
    SEND_BATCH,
    SEND_ONE,
    TOKENIZE,
    WAIT_FOR_RANKS,
)
from tests.support.sglang_hooks import HookRegistry, HookType

MANAGERS = "sglang.srt.managers"
Patch = pytest.MonkeyPatch


def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return ["ours", *original(*args, **kwargs)]


async def around_async(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return ["ours", *await original(*args, **kwargs)]


FACTS = Facts(
    tickets="ipc://x", pid=1, pool_tokens=2, running=3, input_tokens=4, token_bytes=5, whole=True, server="ipc://y"
)  # fmt: skip


class Adapter:
    """Both sides: of the tokenizer, and of the ranks."""

    def __init__(self) -> None:
        self.opened: list[tuple[Settings, Sequence[Facts]]] = []  # arenas
        self.joined: list[Any] = []  # schedulers
        self.fails: Exception | None = None
        self.tokenizer = SimpleNamespace(
            HOOKS={TOKENIZE: around_async, SEND_ONE: around_async, SEND_BATCH: around_async, ABORT: around},
            open_arena=self._open,
        )
        self.ranks = SimpleNamespace(HOOKS={RECEIVE: around}, join=self._join)

    def _open(self, chosen: Settings, ranks: Sequence[Facts]) -> None:
        if self.fails is not None:
            raise self.fails
        self.opened.append((chosen, ranks))

    def _join(self, scheduler: Any) -> Facts:
        if self.fails is not None:
            raise self.fails
        self.joined.append(scheduler)
        return FACTS


@pytest.fixture
def adapter() -> Adapter:
    return Adapter()


@pytest.fixture
def load(fake_sglang: Patch, adapter: Adapter, caplog: pytest.LogCaptureFixture) -> Callable[[], None]:
    """What SGLang does in each of its processes."""
    fake_sglang.setattr(plugin, "adapters", lambda: (adapter.tokenizer, adapter.ranks))
    caplog.set_level(logging.INFO)

    def load() -> None:
        plugin.register()
        HookRegistry.apply_hooks()

    return load


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name != "sglang"
    ]


def answer() -> Any:
    return pkgutil.resolve_name(f"{MANAGERS}.scheduler.Scheduler")().get_init_info()


def call(*answers: Any) -> Any:
    """The roll call in the tokenizer's process."""
    return pkgutil.resolve_name(WAIT_FOR_RANKS)([lambda info=info: info for info in answers], [])


def results() -> list[Any]:
    """What the five hooked functions of the adapter give."""
    manager = pkgutil.resolve_name(f"{MANAGERS}.tokenizer_manager.TokenizerManager")()
    receiver = pkgutil.resolve_name(RECEIVE.rpartition(".")[0])()
    return [
        asyncio.run(manager._tokenize_one_request("z")),
        asyncio.run(manager._send_one_request("a")),
        asyncio.run(manager._send_batch_request(["a", "b"])),
        receiver.recv_requests(local_reqs=["c"]),
        manager.abort_request("d"),
    ]


PLAIN = [["tokenized", "z"], ["sent", "a"], ["sent", "a", "b"], ["c", "received"], ["aborted", "d"]]
OURS = [["ours", *result] for result in PLAIN]
READY = {"status": "ready", "coatcheck": (__version__, "", asdict(FACTS))}


def test_after_the_roll_call_all_hooks_act(
    load: Callable[[], None], adapter: Adapter, fake_sglang: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_sglang.setenv("COATCHECK_SGLANG_SHARE", "0.5")
    load()
    assert HookRegistry.patched == {function.path for function in HOOKED}
    assert call(dict(READY), dict(READY)) == [{"status": "ready"}] * 2  # what is ours was taken out
    assert results() == OURS
    assert warnings(caplog) == []
    assert adapter.opened == [(Settings(True, None, 0.5, whole=True, workers=None), [FACTS, FACTS])]
    assert adapter.joined == []


def test_a_rank_that_found_its_hooks_answers_where_it_is_reached_and_its_hooks_act(
    load: Callable[[], None], adapter: Adapter
) -> None:
    load()
    found = answer()
    assert found == READY
    assert pickle.loads(pickle.dumps(found)) == found
    assert [type(scheduler).__name__ for scheduler in adapter.joined] == ["Scheduler"]
    assert adapter.opened == []
    assert results() == OURS


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConfigError("on a CPU, Mllama is not known"), "on a CPU, Mllama is not known"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
    ],
)
def test_a_rank_that_cannot_join_says_why_and_sglang_starts(
    error: Exception, reason: str, load: Callable[[], None], adapter: Adapter, caplog: pytest.LogCaptureFixture
) -> None:
    adapter.fails = error
    load()
    found = answer()
    assert found == {"status": "ready", "coatcheck": (__version__, reason, {})}
    assert results() == PLAIN
    assert call(dict(READY), found) == [{"status": "ready"}] * 2
    assert results() == PLAIN
    (said,) = warnings(caplog)
    assert reason in said


def test_a_server_whose_arena_cannot_be_asked_for_starts(
    load: Callable[[], None], adapter: Adapter, caplog: pytest.LogCaptureFixture
) -> None:
    adapter.fails = RuntimeError("can't start new thread")
    load()
    assert call(dict(READY)) == [{"status": "ready"}]
    assert results() == PLAIN
    (said,) = warnings(caplog)
    assert "RuntimeError: can't start new thread" in said


def test_every_server_of_a_process_gets_an_arena(load: Callable[[], None], adapter: Adapter) -> None:
    load()
    for _ in range(2):
        call(dict(READY))
    assert len(adapter.opened) == 2


def test_before_the_roll_call_hooks_pass_through_and_say_once_that_there_was_none(
    load: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    load()
    assert results() == PLAIN
    assert results() == PLAIN
    (said,) = warnings(caplog)
    assert "starts its ranks another way" in said


async def send_one_more(self: Any, tokenized_obj: Any, priority: int) -> None: ...


def send_one_blocking(self: Any, tokenized_obj: Any) -> None: ...


def inputs_copied(self: Any, mm_inputs: Any) -> Any:
    return object()


def errors_ignored(self: Any, mm_inputs: Any) -> Any:
    return mm_inputs


class Renamed:
    """A record with other fields."""

    __struct_fields__ = ("message", "code")


def broken_module(patch: Patch) -> None:
    def fail(name: str) -> Any:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    patch.setattr("importlib.import_module", fail)


HOOKLESS = SimpleNamespace(HOOKS={}, join=id)  # ranks


def without_blake3(patch: Patch) -> None:
    patch.setattr(importlib.util, "find_spec", lambda name: None)


DOCTORED: dict[str, tuple[Callable[[Patch], None], str]] = {
    "another version": (
        lambda patch: patch.setattr("coatcheck.integrations.sglang.targets.version", lambda: "0.5.24"),
        "SGLang's version: 0.5.24",
    ),
    "a changed signature": (
        lambda patch: patch.setattr(SEND_ONE, send_one_more),
        "_send_one_request: takes (self, tokenized_obj, priority), not (self, tokenized_obj)",
    ),
    "no coroutine any more": (
        lambda patch: patch.setattr(SEND_ONE, send_one_blocking),
        "_send_one_request: is not a coroutine function",
    ),
    "a missing target": (
        lambda patch: patch.delattr(RECEIVE),
        f"there is no {RECEIVE}",
    ),
    "a missing class": (
        lambda patch: patch.delattr(sys.modules[RECEIVE.rsplit(".", 2)[0]], "SchedulerRequestReceiver"),
        f"there is no {RECEIVE}",
    ),
    "a missing module": (
        lambda patch: patch.delitem(sys.modules, RECEIVE.rsplit(".", 2)[0]),
        "SGLang's modules: ModuleNotFoundError",
    ),
    "a missing record": (
        lambda patch: patch.delattr(sys.modules[f"{MANAGERS}.schedule_batch"], "MultimodalDataItem"),
        f"there is no {MANAGERS}.schedule_batch.MultimodalDataItem",
    ),
    "a module that cannot be imported": (broken_module, "ImportError: libcuda.so.1"),
    "a new field": (
        lambda patch: patch.setattr(sys.modules[f"{MANAGERS}.schedule_batch"], "MultimodalProcessorOutput", Renamed),
        "code, ",
    ),
    "a field under another name": (
        lambda patch: patch.setattr(sys.modules[f"{MANAGERS}.io_struct"], "AbortReq", Renamed),
        "fields of AbortReq: abort_all, rid new or missing",
    ),
    "a setting under another name": (
        lambda patch: patch.delattr(sys.modules["sglang.srt.server_args"].ServerArgs, "pp_size"),
        "there is no pp_size",
    ),
    "a variable under another name": (
        lambda patch: patch.delattr(sys.modules["sglang.srt.environ"].envs, "SGLANG_RUST_SERVER"),
        "there is no SGLANG_RUST_SERVER",
    ),
    "another variable under another name": (
        lambda patch: patch.delattr(sys.modules["sglang.srt.environ"].envs, UNNAMED),
        f"there is no {UNNAMED}",
    ),
    "inputs that are not taken as they are": (
        lambda patch: patch.setattr(INPUTS, inputs_copied),
        "does not take them as they are",
    ),
    "errors that are taken for inputs": (
        lambda patch: patch.setattr(INPUTS, errors_ignored),
        "takes an error for inputs",
    ),
    "no blake3": (without_blake3, "blake3: not installed"),
    "a setting of ours": (lambda patch: patch.setenv("COATCHECK_SGLANG_SHARE", "2"), "COATCHECK_SGLANG_SHARE: '2'"),
    "an adapter that hooks less": (
        lambda patch: patch.setattr(plugin, "adapters", lambda: (Adapter().tokenizer, HOOKLESS)),
        "hooks and targets disagree",
    ),
    "an adapter that is not there": (
        lambda patch: patch.setattr(plugin, "adapters", lambda: importlib.import_module("coatcheck.nothing")),
        "No module named 'coatcheck.nothing'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", DOCTORED)
def test_it_stands_aside_whole_with_one_warning(
    change: str, load: Callable[[], None], fake_sglang: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    doctor, reason = DOCTORED[change]
    with fake_sglang.context() as patch:
        doctor(patch)
        load()
        load()  # a child process: it inherits what was said
    assert HookRegistry.hooks == {}
    assert results() == PLAIN
    (said,) = warnings(caplog)
    assert said.startswith("coatcheck stands aside, and SGLang works as without it: ")
    assert reason in said


def test_switched_off_it_looks_at_nothing_and_warns_of_nothing(
    load: Callable[[], None], fake_sglang: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_sglang.setenv("COATCHECK_SGLANG_ENABLED", "0")
    fake_sglang.setattr(plugin, "check", lambda: pytest.fail("looked"))
    load()
    assert HookRegistry.hooks == {}
    assert warnings(caplog) == []


@pytest.mark.parametrize("path", [function.path for function in HOOKED])
def test_a_hook_that_sglang_did_not_apply_keeps_all_others_from_acting(
    path: str, load: Callable[[], None], adapter: Adapter, caplog: pytest.LogCaptureFixture
) -> None:
    HookRegistry.breaks.add(path)
    load()
    if path != RANK_READY:
        assert answer()["coatcheck"] == (__version__, f"SGLang did not apply the hook on {path}", {})
        assert results() == PLAIN
    call(dict(READY))
    assert adapter.opened == []
    assert results() == PLAIN
    if path != WAIT_FOR_RANKS:  # or else nobody asks; what is said then is another test's
        (said,) = warnings(caplog)
        assert path in said


@pytest.mark.parametrize("first", [True, False])
def test_it_does_not_share_a_target_with_another_plugin(
    first: bool, load: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    def theirs(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    if first:
        HookRegistry.register(RECEIVE, theirs, HookType.AROUND)
        load()
    else:
        plugin.register()
        HookRegistry.register(RECEIVE, theirs, HookType.AROUND)
        HookRegistry.apply_hooks()
    call(dict(READY))
    assert results() == PLAIN
    (said,) = warnings(caplog)
    assert f"another plugin hooks {RECEIVE}, too" in said


def test_a_target_that_was_patched_before_is_not_taken_for_ours(
    load: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    HookRegistry.register(RECEIVE, lambda original, *args, **named: original(*args, **named), HookType.AROUND)
    HookRegistry.apply_hooks()  # from here on SGLang leaves this target as it is
    load()
    call(dict(READY))
    assert results() == PLAIN
    assert f"did not apply the hook on {RECEIVE}" in warnings(caplog)[0]


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ({"status": "ready"}, "scheduler 1 did not say that it takes part"),
        ({"status": "ready", "coatcheck": ("0.0.1", "", {})}, "scheduler 1 has coatcheck 0.0.1, the tokenizer "),
        ({"status": "ready", "coatcheck": ("0.0.1", "", {"other": 1})}, "scheduler 1 has coatcheck 0.0.1, "),
        ({"status": "ready", "coatcheck": ("0.0.1", "")}, "scheduler 1 has coatcheck 0.0.1, the tokenizer "),
        ({"status": "ready", "coatcheck": (__version__, "broken", {})}, "scheduler 1: broken"),
    ],
)  # fmt: skip
def test_one_rank_that_does_not_take_part_keeps_the_tokenizer_from_it(
    last: dict[str, Any], reason: str, load: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    load()
    assert call(dict(READY), dict(last)) == [{"status": "ready"}] * 2
    assert results() == PLAIN
    (said,) = warnings(caplog)
    assert reason in said


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.setting)
def test_for_every_limit_it_stands_aside_by_name(
    limit: support.Limit, load: Callable[[], None], fake_sglang: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    if limit.variable:
        fake_sglang.setattr(getattr(sys.modules["sglang.srt.environ"].envs, limit.setting), "get", lambda: "other")
    else:
        fake_sglang.setattr(sys.modules["sglang.srt.server_args"].ServerArgs, limit.setting, "other")
    load()
    assert limit.name in answer()["coatcheck"][1]
    call(dict(READY))
    assert results() == PLAIN
    (said,) = warnings(caplog)
    assert f"{limit.name}: {limit.why}" in said


def test_who_stood_aside_for_one_server_does_so_for_the_next(
    load: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    load()
    call({"status": "ready"})
    assert results() == PLAIN
    call(dict(READY))
    assert results() == PLAIN
    assert len(warnings(caplog)) == 1


def test_a_server_that_is_not_served_leaves_an_earlier_one_of_its_process_alone(
    load: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    load()
    call(dict(READY))
    call({"status": "ready"})
    assert results() == OURS
    (said,) = warnings(caplog)
    assert "scheduler 0 did not say that it takes part" in said


def test_the_log_says_that_the_broadcast_flag_is_bypassed(
    load: Callable[[], None], fake_sglang: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_sglang.setattr(sys.modules["sglang.srt.server_args"].ServerArgs, BROADCAST, True)
    load()
    call(dict(READY))
    assert "--enable-broadcast-mm-inputs-process: what coatcheck carries is not broadcast again" in caplog.text


def test_sglang_starts_whatever_goes_wrong_in_the_roll_call(
    load: Callable[[], None], fake_sglang: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_sglang.delattr(sys.modules["sglang.srt.runtime_context"], "get_server_args")
    with fake_sglang.context() as patch:
        patch.setattr(plugin, "check", list)
        load()
    assert "ImportError" in answer()["coatcheck"][1]
    assert call(dict(READY)) == [{"status": "ready"}]
    assert results() == PLAIN
    assert len(warnings(caplog)) == 1


def test_the_reason_is_said_again_if_it_is_another(fake_sglang: Patch, caplog: pytest.LogCaptureFixture) -> None:
    for reason in ("one", "one", "two"):
        rollcall.stand_aside(reason)
    assert [message.split(": ")[1].split(".")[0] for message in warnings(caplog)] == ["one", "two"]
