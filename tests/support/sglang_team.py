"""The tokenizer's process without its server, some ranks, and what is tried on them; run in SGLang's interpreter.

``python -m tests.support.sglang_team RANKS`` writes one line of JSON: for each scenario null, or what went wrong.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import weakref
from array import array
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")

import torch
import zmq
import zmq.asyncio
from sglang.srt.managers.io_struct import SessionParams, TokenizedGenerateReqInput
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalProcessorOutput
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.observability.req_time_stats import APIServerReqTimeStats
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.runtime_context import get_context
from sglang.srt.sampling.sampling_params import SamplingParams

from coatcheck.arena.allocator import pages
from coatcheck.integrations.sglang import arena_owner, tokenizer
from coatcheck.integrations.sglang.rollcall import Facts
from coatcheck.integrations.sglang.settings import Settings
from coatcheck.process import PARENT

WAIT_S = 60.0
READY_TIMEOUT_S = 3.0  # shorter than the plugin's, for the test of a report that is lost
ARENA = 64 << 20
WIDTH, MERGE, TEXT, IMAGE = 1176, 4, 16, 151655  # Qwen2.5-VL's


class Transport:
    """SGLang's transports for tensors on GPUs, where there is none."""

    async def prepare_for_dispatch_async(self, inputs: Any) -> list[Any]:
        """Nothing to prepare."""
        return []

    def prepare_for_dispatch(self, requests: Any) -> list[Any]:
        """Nothing to prepare."""
        return []

    def cancel_for_dispatch(self, prepared: Any) -> None:
        """Nothing was prepared."""


def request(rid: str, patches: int = 0, seed: int = 0) -> TokenizedGenerateReqInput:
    """A prompt of text, and behind it an image of so many patches."""
    count = patches // MERGE
    ids = [*range(TEXT), *[IMAGE] * count]
    inputs = None
    if patches:
        pixels = torch.rand(patches, WIDTH, generator=torch.Generator().manual_seed(seed))
        item = MultimodalDataItem(
            modality=Modality.IMAGE,
            feature=pixels,
            offsets=[(TEXT, TEXT + count - 1)],
            model_specific_data={"image_grid_thw": torch.tensor([[1, 2, patches // 2]])},
        )
        inputs = MultimodalProcessorOutput(
            mm_items=[item],
            input_ids=ids,
            im_token_id=IMAGE,
            mrope_positions=torch.arange(len(ids)).expand(3, -1).contiguous(),
            mrope_position_delta=torch.tensor([[0]]),
        )
    return TokenizedGenerateReqInput(
        rid=rid,
        input_text="",
        input_ids=array("q", ids),
        input_embeds=None,
        mm_inputs=inputs,
        token_type_ids=None,
        sampling_params=SamplingParams(),
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
        time_stats=APIServerReqTimeStats(),
    )


class Team:
    """A TokenizerManager of which only sending works, and what its ranks tell."""

    def __init__(self, ranks: int, share: float = 1.0) -> None:
        self.ranks = ranks
        self.directory = tempfile.TemporaryDirectory(prefix="coatcheck-team-")
        context = zmq.asyncio.Context()
        manager: Any = TokenizerManager.__new__(TokenizerManager)
        manager.send_to_scheduler = context.socket(zmq.PUSH)
        manager.send_to_scheduler.bind(f"ipc://{self.directory.name}/requests")
        manager.cuda_vmm_feature_transport = manager.positional_embeds_transport = Transport()
        manager.mm_processor = manager
        manager.tokenizer_ipc_name = None
        manager.rid_to_state, manager.encoder_dispatch_ready = {}, {}
        manager.server_args = SimpleNamespace(tp_size=ranks)
        manager.enable_metrics = False
        self.manager = manager
        self.inbox = context.socket(zmq.PULL)
        self.inbox.bind(f"ipc://{self.directory.name}/told")
        self.told: list[list[tuple[Any, ...]]] = [[] for _ in range(ranks)]
        environment = os.environ | {PARENT: str(os.getpid())}
        rank = [sys.executable, "-W", "ignore", "-m", "tests.support.sglang_rank", self.directory.name]
        self.processes = [subprocess.Popen([*rank, str(i), str(ranks)], env=environment) for i in range(ranks)]

    async def attach(self) -> None:
        """The roll call, until requests can be carried."""
        await self.until(lambda: all(told and told[0][0] == "facts" for told in self.told))
        facts = [Facts(**told.pop(0)[1]) for told in self.told]
        tokenizer.open_arena(Settings(enabled=True, arena_bytes=ARENA, share=1.0, whole=False, workers=None), facts)
        opening = tokenizer.opening(self.manager)
        assert opening is not None, "the entry rank and the tokenizer's process do not mean the same socket"
        await self.until(opening.done.is_set)
        assert opening.ready is not None

    @property
    def side(self) -> tokenizer.TokenizerSide:
        """The plugin's, of the manager."""
        found = tokenizer.side(self.manager)
        assert found is not None
        return found

    @property
    def owner(self) -> arena_owner.ArenaOwner:
        """The arena's owner."""
        assert self.side.owner is not None
        return self.side.owner

    @property
    def held(self) -> int:
        """Bytes of the arena that are not free, or kept only for equal content."""
        statistics = self.owner.statistics()
        return statistics.reserved + statistics.in_use + statistics.quarantined

    async def until(self, done: Callable[[], bool]) -> None:
        """Raises TimeoutError. Takes in what the ranks tell."""
        deadline = time.monotonic() + WAIT_S
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"ranks told {self.told}")
            for process in self.processes:
                assert process.poll() is None, f"a rank ended with {process.returncode}"
            if await self.inbox.poll(20):
                rank, *what = await self.inbox.recv_pyobj()
                self.told[rank].append(tuple(what))

    def said(self, what: str, rid: str) -> list[tuple[Any, ...]]:
        """What ranks have told of it, in the order of ranks."""
        return [one for rank in self.told for one in rank if one[:2] == (what, rid)]

    async def everywhere(self, what: str, rid: str) -> tuple[Any, ...]:
        """Until every rank has told that, and the same of it."""
        await self.until(lambda: len(self.said(what, rid)) == self.ranks)
        assert len(set(self.said(what, rid))) == 1, self.said(what, rid)
        return self.said(what, rid)[0][2:]

    async def send(self, *requests: Any) -> None:
        """One alone, or several as one batch."""
        for one in requests:
            state = SimpleNamespace(dispatched=False, abort_sent=False)
            self.manager.rid_to_state.setdefault(one.rid, state)
        if len(requests) == 1:
            await self.manager._send_one_request(requests[0])
        else:
            await self.manager._send_batch_request(list(requests))

    def order(self, *what: Any) -> None:
        """To the ranks, behind what was sent."""
        self.manager._dispatch_to_scheduler(what)

    async def plant(self, rank: int, fault: str | float, what: str = "fault") -> None:
        """For that rank's next ticket: an error of ours, or so many seconds. Forgets what ranks have told.

        ``what``: "refuse" for an error of SGLang's.
        """
        for told in self.told:
            told.clear()
        self.order(what, rank, fault)
        await self.everywhere(what, str(rank))

    async def finish(self, *rids: str) -> None:
        """The scheduler is done with them; nothing of theirs is left after it."""
        for rid in rids:
            self.order("finish", rid)
            await self.everywhere("finish", rid)

    async def given_back(self) -> None:
        """Until every rank has given back everything."""
        await self.until(lambda: self.held == 0)

    def close(self) -> None:
        """The ranks leave by themselves."""
        self.order("stop")
        for process in self.processes:
            assert process.wait(WAIT_S) == 0
        deadline = time.monotonic() + WAIT_S
        while self.side.owner is not None:  # it ends with its ranks
            assert time.monotonic() < deadline, "the arena outlives its ranks"
            time.sleep(0.05)
        self.directory.cleanup()

    def kill(self) -> None:
        """After a failure."""
        for process in self.processes:
            process.kill()
            process.wait()


# --------------------------------------------------------------------------- scenarios


async def before_the_arena_is_open(team: Team) -> None:
    """SGLang's own way."""
    await team.send(request("early", 64))
    assert await team.everywhere("inputs", "early") != ()
    await team.finish("early")
    await team.attach()
    assert team.side.counts["carried"] == 0


async def the_same_inputs_are_lent_to_every_rank(team: Team) -> None:
    original = request("one", 64)
    inputs = original.mm_inputs
    before = copy.deepcopy(original.mm_inputs)
    await team.send(original)
    lent, values = await team.everywhere("inputs", "one")
    assert lent
    item = inputs.mm_items[0]
    assert torch.equal(item.feature, before.mm_items[0].feature)
    assert (item.hash, item.pad_value, inputs.padded_input_ids) == (None, None, None), "it was changed"
    assert team.held
    feature = weakref.ref(item.feature)
    del inputs, item
    assert original.mm_inputs is None and feature() is None, "who sent it would keep the pixels until it is answered"
    await team.send(request("other", 64, seed=1))
    assert values != (await team.everywhere("inputs", "other"))[1]
    await team.finish("one", "other")
    await team.given_back()


async def what_is_sent_again_is_written_once_and_given_back_as_often(team: Team) -> None:
    before = team.owner.statistics()
    original = request("", 128, seed=2)
    rids = [f"again-{number}" for number in range(4)]
    for rid in rids:
        one = copy.copy(original)
        one.mm_inputs = copy.copy(original.mm_inputs)
        one.mm_inputs.mm_items = [copy.copy(item) for item in original.mm_inputs.mm_items]
        one.rid = rid
        await team.send(one)
        await team.everywhere("inputs", rid)
    after = team.owner.statistics()
    assert (after.reservations - before.reservations, after.hits - before.hits) == (1, 3)
    await team.finish(*rids[:3])
    await asyncio.sleep(0.3)
    assert team.held
    await team.finish(rids[3])
    await team.given_back()


async def a_batch(team: Team) -> None:
    batch = [request("b0", 64, 3), request("b1"), request("b2", 64, 4)]
    await team.send(*batch)
    for rid, what in (("b0", "inputs"), ("b1", "text"), ("b2", "inputs")):
        await team.everywhere(what, rid)
    assert team.said("inputs", "b0")[0][2:] != team.said("inputs", "b2")[0][2:]
    await team.finish("b0", "b1", "b2")
    await team.given_back()


async def equal_pictures_in_other_prompts_are_one_block(team: Team) -> None:
    before = team.owner.statistics()
    for number, text in enumerate(("a question", "another")):
        one = request(f"about-{number}", 128, seed=40)
        one.mm_inputs.input_ids[0] += number
        one.input_text = text
        await team.send(one)
        await team.everywhere("inputs", one.rid)
    after = team.owner.statistics()
    assert (after.reservations - before.reservations, after.in_use) == (2, before.in_use + pages(128 * WIDTH * 4))
    await team.finish("about-0", "about-1")
    await team.given_back()


async def what_sglang_refuses_on_one_rank_is_rejected_on_all(team: Team) -> None:
    last = team.ranks - 1
    await team.plant(last, "injected", "refuse")
    await team.send(request("faulty", 64, 5))
    await team.send(request("next", 64, 6))
    (reason,) = await team.everywhere("rejected", "faulty")
    assert reason == f"Multimodal inputs could not be prepared on rank {last}: ValueError"
    await team.everywhere("inputs", "next")
    await team.finish("next")
    await team.given_back()


async def a_fault_of_ours_on_one_rank_costs_nobody_anything(team: Team) -> None:
    trouble = team.side.counts["trouble"]
    await team.plant(team.ranks - 1, "injected")
    await team.send(request("faulty", 64, 5))
    await team.send(request("next", 64, 6))
    for rid in ("faulty", "next"):
        await team.everywhere("inputs", rid)
    assert team.side.counts["trouble"] == trouble + 1
    await team.finish("faulty", "next")
    await team.given_back()


async def a_fault_within_a_batch(team: Team) -> None:
    await team.plant(team.ranks - 1, "injected", "refuse")
    both = [request("this", 64, 20), request("that", 64, 21)]
    await team.send(*both)
    await team.until(lambda: all(len(told) == 3 for told in team.told))
    assert sorted(one[0] for one in team.told[0][1:]) == ["inputs", "rejected"]
    for told in team.told[1:]:
        assert told[1:] == team.told[0][1:]
    await team.finish("this", "that")
    await team.plant(team.ranks - 1, "injected")
    await team.send(request("the other", 64, 20), request("and another", 64, 21))
    for rid in ("the other", "and another"):
        await team.everywhere("inputs", rid)
    await team.finish("the other", "and another")
    await team.given_back()


async def a_batch_that_is_given_up_leaves_nothing(team: Team) -> None:
    await team.plant(0, 0.0)
    await team.plant(0, 0.5)
    sending = asyncio.create_task(team.send(request("ready", 64, 22), request("waiting", 64, 23)))
    await asyncio.sleep(0.2)
    team.manager.rid_to_state.clear()
    sending.cancel()
    await asyncio.wait([sending])
    assert sending.cancelled()
    await team.given_back()


async def aborts_while_ranks_prepare(team: Team) -> None:
    for rid, abort in (("one", {"rid": "one"}), ("all", {"abort_all": True})):
        await team.plant(0, 0.5)
        sending = asyncio.create_task(team.send(request(rid, 64, 7)))
        await asyncio.sleep(0.1)
        assert not sending.done(), "it is sent when every rank is ready"
        team.manager.abort_request(**abort)
        await sending
        await team.everywhere("inputs", rid)
        await team.until(lambda: all(told[-1][0] == "abort" for told in team.told))
        for told in team.told:
            assert [one[:2] for one in told[-3:]] == [("abort", abort.get("rid", "")), ("inputs", rid), ("abort", rid)]
        await team.finish(rid)
        await team.given_back()


async def a_client_that_leaves_while_ranks_prepare(team: Team) -> None:
    for rank in range(team.ranks):
        await team.plant(rank, 0.5)
    sending = asyncio.create_task(team.send(request("gone", 64, 19)))
    await asyncio.sleep(0.1)
    sending.cancel()
    await asyncio.wait([sending])
    assert sending.cancelled()
    await team.given_back()
    assert not team.said("inputs", "gone")


async def an_abort_that_overtakes_its_request(team: Team) -> None:
    sending = asyncio.create_task(team.send(request("overtaken", 4096, 8)))
    await asyncio.sleep(0)
    team.manager.abort_request("overtaken")
    await sending
    await team.until(lambda: len(team.said("abort", "overtaken")) == 2 * team.ranks)
    for rank in team.told:
        assert [one[0] for one in rank if one[1] == "overtaken"][-1] == "abort"
    await team.finish("overtaken")
    await team.given_back()


async def a_client_that_leaves_while_its_request_is_written(team: Team) -> None:
    for delay in (0.0, 0.005, 0.02):
        sending = asyncio.create_task(team.send(request(f"left-{delay}", 4096, 9)))
        await asyncio.sleep(delay)
        sending.cancel()
        try:
            await sending
            await team.everywhere("inputs", f"left-{delay}")
            await team.finish(f"left-{delay}")
        except asyncio.CancelledError:
            pass
    await team.given_back()


async def a_request_that_cannot_be_sent(team: Team) -> None:
    broken = request("broken", 64, 10)
    broken.sampling_params = lambda: None  # cannot be pickled
    try:
        await team.send(broken)
    except Exception:
        await team.given_back()
    else:
        raise AssertionError("it was sent")


async def a_full_arena_leaves_it_to_sglang(team: Team) -> None:
    carried = team.side.counts["carried"]
    large = 11000  # patches: 52 MB of 64
    await team.send(request("large", large, 11))
    await team.send(request("larger", large, 12))
    for rid in ("large", "larger"):
        await team.everywhere("inputs", rid)
    assert team.side.counts["carried"] == carried + 1
    assert team.side.counts["no room"] == 1
    await team.finish("large", "larger")
    await team.given_back()


async def until_it_carries(team: Team) -> None:
    await team.until(lambda: team.owner.carries)


async def a_report_that_is_lost(team: Team) -> None:
    last = team.ranks - 1
    team.order("mute", last)
    await team.everywhere("mute", str(last))
    start, trouble = time.monotonic(), team.side.counts["trouble"]
    losing = asyncio.create_task(team.send(request("lost", 64, 13)))
    await asyncio.sleep(0.2)
    await team.send(request("found", 64, 14))
    await team.everywhere("inputs", "found")
    assert not losing.done()
    await losing
    assert READY_TIMEOUT_S <= time.monotonic() - start < READY_TIMEOUT_S + 2
    await team.everywhere("inputs", "lost")
    assert team.side.counts["trouble"] == trouble + 1
    await team.send(request("meanwhile", 64, 15))
    assert team.side.counts["breaker open"] == 1
    await until_it_carries(team)
    carried = team.side.counts["carried"]
    await team.send(request("afterwards", 64, 16))
    assert team.side.counts["carried"] == carried + 1
    for rid in ("meanwhile", "afterwards"):
        await team.everywhere("inputs", rid)
    await team.finish("lost", "found", "meanwhile", "afterwards")
    await team.given_back()


async def a_lane_that_stands_still_costs_one_wait(team: Team) -> None:
    await team.plant(0, 2 * READY_TIMEOUT_S)
    start, counts = time.monotonic(), team.side.counts.copy()
    rids = [f"stuck-{number}" for number in range(4)]
    await asyncio.gather(*(team.send(request(rid, 64, 50 + number)) for number, rid in enumerate(rids)))
    assert time.monotonic() - start < READY_TIMEOUT_S + 2
    assert team.side.counts["trouble"] == counts["trouble"] + 4
    for number in range(4):
        start = time.monotonic()
        await team.send(request(f"later-{number}", 64, 60 + number))
        assert time.monotonic() - start < 1
    assert team.side.counts["breaker open"] == counts["breaker open"] + 4
    for rid in (*rids, *(f"later-{number}" for number in range(4))):
        await team.everywhere("inputs", rid)
        await team.finish(rid)
    await until_it_carries(team)
    await team.given_back()


async def a_session_goes_sglangs_own_way(team: Team) -> None:
    one = request("session", 64, 15)
    one.session_params = SessionParams(id="s")
    await team.send(one)
    await team.everywhere("inputs", "session")
    assert team.side.counts["session"] == 1
    assert team.held == 0
    await team.finish("session")


async def receives_that_are_skipped(team: Team) -> None:
    team.order("skip", 50)  # so that the claim meets receives that carry nothing
    await team.everywhere("skip", "50")
    await team.send(request("skipped", 64, 16))
    await team.everywhere("inputs", "skipped")
    await team.finish("skipped")
    await team.given_back()


async def text_does_not_wait_for_images(team: Team) -> None:
    await team.plant(team.ranks - 1, 0.5)
    await asyncio.gather(*map(team.send, (request("slow", 64, 17), request("text"), request("fast", 64, 18))))
    await team.everywhere("inputs", "fast")
    await team.everywhere("inputs", "slow")
    for rank in team.told:
        assert next(one[1] for one in rank if one[0] in ("text", "inputs")) == "text"
    await team.finish("slow", "fast")
    await team.given_back()


async def a_request_wakes_an_entry_rank_that_sleeps(team: Team) -> None:
    start = time.monotonic()
    rids = [f"idle-{number}" for number in range(10)]
    for number, rid in enumerate(rids):
        await team.send(request(rid, 64, 30 + number))
        await team.everywhere("inputs", rid)
    assert time.monotonic() - start < 5, "it slept its second for each of them"
    await team.finish(*rids)
    await team.given_back()


async def many_at_once(team: Team) -> None:
    rids = [f"m{number}" for number in range(24)]
    await asyncio.gather(*(team.send(request(rid, 64 * (1 + number % 3), number)) for number, rid in enumerate(rids)))
    for rid in rids:
        await team.everywhere("inputs", rid)
    for rank in team.told:
        assert rank == team.told[0], "ranks had them in another order, or others"
    await team.finish(*rids)
    await team.given_back()


SCENARIOS: list[Callable[[Team], Awaitable[None]]] = [
    before_the_arena_is_open,
    the_same_inputs_are_lent_to_every_rank,
    what_is_sent_again_is_written_once_and_given_back_as_often,
    a_batch,
    equal_pictures_in_other_prompts_are_one_block,
    what_sglang_refuses_on_one_rank_is_rejected_on_all,
    a_fault_of_ours_on_one_rank_costs_nobody_anything,
    a_fault_within_a_batch,
    a_batch_that_is_given_up_leaves_nothing,
    aborts_while_ranks_prepare,
    a_client_that_leaves_while_ranks_prepare,
    an_abort_that_overtakes_its_request,
    a_client_that_leaves_while_its_request_is_written,
    a_request_that_cannot_be_sent,
    a_full_arena_leaves_it_to_sglang,
    a_report_that_is_lost,
    a_lane_that_stands_still_costs_one_wait,
    a_session_goes_sglangs_own_way,
    receives_that_are_skipped,
    text_does_not_wait_for_images,
    a_request_wakes_an_entry_rank_that_sleeps,
    many_at_once,
]


def hook(ranks: int) -> None:
    """As the plugin does, for the process in which the tokenizer is."""
    get_context().override_server_args(tp_size=ranks).install()
    arena_owner.READY_TIMEOUT_S = READY_TIMEOUT_S
    for path, function in tokenizer.HOOKS.items():
        HookRegistry.register(path, function, HookType.AROUND)
    HookRegistry.apply_hooks()


async def main(ranks: int) -> dict[str, str | None]:
    """Every scenario, on one team."""
    hook(ranks)
    team = Team(ranks)
    found: dict[str, str | None] = {}
    try:
        for scenario in SCENARIOS:
            try:
                await scenario(team)
                found[scenario.__name__] = None
            except Exception:
                found[scenario.__name__] = traceback.format_exc()
                break
        else:
            team.close()
    finally:
        team.kill()
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(int(sys.argv[1])))))
