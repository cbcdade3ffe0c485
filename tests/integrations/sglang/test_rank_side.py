"""A rank's side over a fake SGLang: what it lends, what it serves, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import zmq

from coatcheck.arena import Arena, ArenaAddress
from coatcheck.delivery import preparer
from coatcheck.errors import ConfigError
from coatcheck.integrations.sglang import codec
from coatcheck.integrations.sglang.arena_owner import ArenaOwner, RankAddress, Refused, Trouble
from coatcheck.integrations.sglang.codec import LARGE
from coatcheck.integrations.sglang.pace import Pace
from coatcheck.integrations.sglang.records import Alive, Attached, Claim, Goodbye, Hello, Probe, Ticket, from_ranks
from coatcheck.sockets import PrivateEndpoint
from coatcheck.wire import encode
from tests.support.sglang_peer import Package, until

MANAGERS = "sglang.srt.managers"
READER = "Qwen2_5_VLForConditionalGeneration"
SERVED = "sglang.srt.models.qwen2_5_vl"


def scheduler(model: str = READER, module: str = SERVED, device: str = "cpu") -> Any:
    """As far as a rank looks at it; ``model`` is the class that runs."""
    runs = type(model, (), {"__module__": module})()
    receiver = sys.modules[f"{MANAGERS}.scheduler_components.request_receiver"].SchedulerRequestReceiver()
    return SimpleNamespace(
        device=device,
        tp_worker=SimpleNamespace(model_runner=SimpleNamespace(model=runs)),
        model_config=SimpleNamespace(
            requires_mm_token_modalities=False, hf_config=SimpleNamespace(architectures=[READER])
        ),
        request_receiver=receiver,
        max_total_num_tokens=1000,
        max_running_requests=8,
        max_req_input_len=500,
    )


@pytest.fixture
def ranks(fresh: Callable[[str], Any]) -> Any:
    return fresh("ranks")


@pytest.mark.parametrize(
    ("model", "module", "device", "joins"),
    [
        (READER, SERVED, "cpu", True),
        ("KimiK25ForConditionalGeneration", "sglang.srt.models.kimi_k25", "cpu", True),
        ("MllamaForConditionalGeneration", "sglang.srt.models.mllama", "cpu", False),
        ("TransformersMultiModalForCausalLM", "sglang.srt.models.transformers", "cpu", False),
        (READER, "a_package_of_ones_own.qwen", "cpu", False),
        ("MllamaForConditionalGeneration", "sglang.srt.models.mllama", "cuda", True),
        (READER, "a_package_of_ones_own.qwen", "cuda", True),
    ],
)
def test_the_class_that_runs_decides_and_only_on_a_cpu(
    model: str, module: str, device: str, joins: bool, ranks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the architecture that the checkpoint names, which is always one that is served."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    given = scheduler(model, module, device)
    if joins:
        assert ranks.join(given).pid == os.getpid()
    else:
        with pytest.raises(ConfigError, match=f"on a CPU, {model} is not known to leave its features as they are"):
            ranks.join(given)


def test_it_tells_what_an_arena_s_size_follows_from(ranks: Any) -> None:
    given = scheduler()
    given.model_config.hf_config.vision_config = SimpleNamespace(
        patch_size=16, spatial_merge_size=2, temporal_patch_size=2, in_channels=3
    )
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PULL)
    socket.bind("ipc://@coatcheck-test-rank-side")
    given.request_receiver.recv_from_tokenizer = socket
    facts = ranks.join(given)
    context.destroy(linger=0)
    assert (facts.pool_tokens, facts.running, facts.input_tokens, facts.token_bytes) == (1000, 8, 500, 24576)
    assert facts.server == "ipc://@coatcheck-test-rank-side"
    assert ranks.join(scheduler()).server == ""


class Line:
    """What a rank is told and tells, without a owner."""

    def __init__(self, tickets: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._out = self._context.socket(zmq.PUSH)
        self._out.connect(tickets)
        self._in = self._context.socket(zmq.PULL)
        self._in.rcvtimeo = 5000
        self.endpoint = PrivateEndpoint(self._in)

    def tell(self, record: Any) -> None:
        self._out.send(encode(record))

    def hear(self) -> Any:
        return from_ranks(self._in.recv())

    def close(self) -> None:
        self.endpoint.close()
        self._context.destroy(linger=0)


@pytest.fixture
def line(ranks: Any) -> Iterator[Line]:
    made = Line(ranks.join(scheduler()).tickets)
    yield made
    made.close()


@pytest.mark.parametrize("path", ["/proc/self/fd/99999", "", "/dev/null"])
def test_a_rank_that_cannot_map_the_arena_says_so(path: str, line: Line) -> None:
    line.tell(Hello(ArenaAddress(path, path, 8192), line.endpoint.address))
    said = line.hear()
    assert isinstance(said, Attached)
    assert said.rank == 0
    assert said.problem


def test_a_rank_answers_probes_in_their_turn(line: Line) -> None:
    with Arena(1 << 20) as arena:
        line.tell(Hello(arena.address, line.endpoint.address))
        assert line.hear() == Attached(0)
        for number in (1, 2):
            line.tell(Probe(number))
            assert line.hear() == Alive(number, 0)


def mappings() -> int:
    """Of arenas, in this process."""
    return Path("/proc/self/maps").read_text().count("coatcheck-arena")


def test_a_rank_that_is_dismissed_lets_go_of_the_arena(line: Line) -> None:
    with Arena(1 << 20) as arena:
        before = mappings()
        line.tell(Hello(arena.address, line.endpoint.address))
        assert line.hear() == Attached(0)
        assert mappings() == before + 1
        line.tell(Goodbye())
        until(lambda: mappings() == before, 5)


# ---------------------------------------------------------------------- with a owner


class Team:
    """A owner and one rank, in one process."""

    def __init__(self, ranks: Any) -> None:
        self.ranks = ranks
        self.scheduler = scheduler()
        facts = ranks.join(self.scheduler)
        self.owner = ArenaOwner(4 << 20, [RankAddress(facts.tickets, facts.pid)], Pace(0.0))
        assert self.owner.wait_attached(10) == ""

    def inputs(self, *features: torch.Tensor) -> Any:
        batch = sys.modules[f"{MANAGERS}.schedule_batch"]
        modality = sys.modules["sglang.srt.multimodal.modality"].Modality.IMAGE
        items = [batch.MultimodalDataItem(modality=modality, feature=one, model_specific_data={}) for one in features]
        return batch.MultimodalProcessorOutput(mm_items=items, input_ids=[1, 2])

    def announce(self, *features: torch.Tensor) -> Ticket:
        made = self.inputs(*features)

        class Whole(Package):
            def body(self) -> bytes:
                return codec.pack(made, self.blocks, self.blocks)

        return asyncio.run(self.owner.check_in(Whole(*features)))

    def receive(self, claim: Claim) -> Any:
        """What the scheduler gets of its next request."""
        request = sys.modules[f"{MANAGERS}.io_struct"].TokenizedGenerateReqInput("r", claim, False, None)
        original = lambda receiver, local_reqs: [request]  # noqa: E731
        (got,) = self.ranks.recv_requests(original, self.scheduler.request_receiver)
        return got.mm_inputs

    @property
    def held(self) -> int:
        statistics = self.owner.statistics()
        return statistics.in_use + statistics.quarantined


@pytest.fixture
def team(ranks: Any) -> Iterator[Team]:
    made = Team(ranks)
    yield made
    made.owner.close()


def arenas() -> list[range]:
    """Where this process has arenas mapped that it cannot write to."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "coatcheck-arena" in line]
    spans = [[int(edge, 16) for edge in line[0].split("-")] for line in lines if line[1].startswith("r--")]
    return [range(*span) for span in spans]


def test_features_lie_in_the_arena_and_are_no_copies_of_a_rank_s_own(team: Team) -> None:
    tensor = torch.rand(LARGE)
    ticket = team.announce(tensor, tensor + 1)
    inputs = team.receive(Claim(ticket.request))
    for item, expected in zip(inputs.mm_items, (tensor, tensor + 1), strict=True):
        assert torch.equal(item.feature, expected)
        assert any(item.feature.data_ptr() in span for span in arenas())


def test_a_block_comes_back_when_its_features_are_let_go_not_when_the_request_ends(team: Team) -> None:
    gc.collect()
    gc.disable()
    try:
        inputs = team.receive(Claim(team.announce(torch.rand(LARGE), torch.rand(LARGE)).request))
        time.sleep(0.1)
        assert team.held
        for item in inputs.mm_items:  # as it is moved to a device
            item.feature = item.feature.clone()
        until(lambda: team.held == 0, 2)
        assert inputs.mm_items
    finally:
        gc.enable()


def test_what_is_withdrawn_comes_back_and_what_is_refused_is_an_error_of_the_request(team: Team) -> None:
    team.owner.withdraw(team.announce(torch.rand(LARGE)))
    until(lambda: team.held == 0, 2)
    refusal = team.receive(Claim("", "IndexError"))
    assert refusal.message == "IndexError"
    assert [*refusal.mm_items] == []


@pytest.fixture
def unlogged(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest keeps what is logged, an error's frames among it, and what they hold."""
    monkeypatch.setattr(preparer, "log", logging.Logger("nobody's", logging.CRITICAL))


def test_what_sglang_cannot_take_is_refused_and_comes_back(
    team: Team, fake_sglang: pytest.MonkeyPatch, unlogged: None
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise IndexError("grid")

    fake_sglang.setattr(team.ranks.MultimodalInputs, "from_processor_output", fail)
    with pytest.raises(Refused, match="on rank 0: IndexError"):
        team.announce(torch.rand(LARGE))
    until(lambda: team.held == 0, 2)


def test_what_the_plugin_cannot_unpack_is_trouble_and_comes_back(
    team: Team, fake_sglang: pytest.MonkeyPatch, unlogged: None
) -> None:
    def fail(*arguments: Any) -> None:
        raise MemoryError

    fake_sglang.setattr(team.ranks, "unpack", fail)
    with pytest.raises(Trouble, match="on rank 0: MemoryError"):
        team.announce(torch.rand(LARGE))
    until(lambda: team.held == 0, 2)


def test_ids_are_padded_on_the_lane_and_become_an_array(team: Team) -> None:
    inputs = team.receive(Claim(team.announce(torch.rand(LARGE)).request))
    assert np.asarray(inputs.padded_input_ids).tolist() == [1, 2, 0]
    assert any(thread.name == "coatcheck-help" for thread in threading.enumerate())
