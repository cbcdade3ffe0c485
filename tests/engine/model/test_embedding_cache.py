"""The embedding cache of real ranks: what is encoded, what is not, and that no answer changes."""

from __future__ import annotations

import hashlib
import time
import weakref
from collections.abc import Callable, Iterator
from itertools import count

import msgspec
import pytest
import torch

from coatcheck.engine.model.config import DEFAULT_MODEL
from coatcheck.engine.model.embedding_cache import EmbeddingCache
from coatcheck.engine.model.kv_cache import KVPool
from coatcheck.engine.model.qwen2_5_vl import load
from coatcheck.engine.model.runner import ModelRunner
from coatcheck.engine.records import Admit, Sampling, Work
from coatcheck.engine.strategies.inputs import MultimodalInputs, MultimodalItem
from coatcheck.engine.strategies.table import STRATEGIES
from tests.support.engine import Engine, Result
from tests.support.workload import Request, Workload

pytestmark = [pytest.mark.timeout(150), pytest.mark.processes]

WAIT_S = 10.0  # for a snapshot: they come once a second
PICTURE = [(8, 8)]
TOKENS = 16  # of that picture
_names = count()


def picture(
    workload: Workload,
    label: str = "",
    strategy: str = "dict-inline",
    seed: int = 0,
    text: int = 5,
    max_tokens: int = 6,
) -> Request:
    """One image with its digest; equal seeds are equal pictures. The name is never used twice."""
    sampling = Sampling(max_tokens)
    made = workload.request(f"{next(_names)}-{label}", strategy, PICTURE, text, seed, sampling)
    items = [
        msgspec.structs.replace(item, digest=hashlib.sha256(frame).digest())
        for item, frame in zip(made.arrived.items, made.frames, strict=True)
    ]
    return Request(msgspec.structs.replace(made.arrived, items=tuple(items)), made.frames)


def ask(engine: Engine, *requests: Request) -> list[Result]:
    for request in requests:
        engine.submit(request.arrived, request.frames)
    return engine.wait(*[request.arrived.request for request in requests])


def figures(engine: Engine, rank: int) -> dict[str, float]:
    """Of the cache, as the rank's newest snapshot has them."""
    names = ("images_encoded_total", "embedding_cache_hits_total", "embedding_cache_items", "embedding_cache_bytes")
    families = engine.snapshots[rank].families if rank in engine.snapshots else ()
    samples = {sample.name: sample.value for family in families for sample in family.samples}
    return {name: samples.get(f"coatcheck_{name}", 0.0) for name in names}


def await_figures(engine: Engine, wanted: Callable[[dict[str, float]], bool]) -> list[dict[str, float]]:
    """Of each rank, once they are as wanted on every one."""
    deadline = time.monotonic() + WAIT_S
    while not all(wanted(figures(engine, rank)) for rank in range(engine.size)):
        engine.pump(0.1)
        assert time.monotonic() < deadline, [figures(engine, rank) for rank in range(engine.size)]
    return [figures(engine, rank) for rank in range(engine.size)]


class Counts:
    """What has changed on every rank since the last call, once a snapshot tells."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._before: dict[str, float] = {}

    def expect(self, images: int, hits: int | None, items: int) -> None:
        """Images encoded or taken from the cache, those taken (None: any number), and how many more are kept."""

        def seen(now: dict[str, float]) -> bool:
            new = {name: value - self._before.get(name, 0) for name, value in now.items()}
            taken = new["embedding_cache_hits_total"]
            right = new["images_encoded_total"] + taken == images and new["embedding_cache_items"] == items
            return right and hits in (None, taken)

        self._before = await_figures(self._engine, seen)[0]


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Engine, Counts]]:
    """A group of two that feeds prompts in parts. Each test has pictures of its own, by the seed."""
    with Engine(DEFAULT_MODEL, 2, chunk_tokens=16) as engine:
        yield engine, Counts(engine)


def test_a_picture_is_encoded_once_whatever_the_strategy(shared: tuple[Engine, Counts], workload: Workload) -> None:
    engine, counts = shared
    requests = [picture(workload, strategy=name) for name in STRATEGIES]
    for request in requests:
        (result,) = ask(engine, request)
        assert result.tokens == workload.generate(request)
        assert result.digest == workload.digest(request)
    counts.expect(images=len(requests), hits=len(requests) - 1, items=1)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_fault_on_one_rank_poisons_nobody(shared: tuple[Engine, Counts], workload: Workload, rank: int) -> None:
    engine, counts = shared
    seed = 10 + rank
    expected = workload.generate(picture(workload, seed=seed))
    failed, *after = [ask(engine, picture(workload, label, seed=seed))[0] for label in (f"fault=encode@{rank}", "", "")]
    assert "encoding item 0" in (failed.rejected or "")
    assert [result.tokens for result in after] == [expected] * 2
    counts.expect(images=3, hits=1, items=1)
    labels = (f"fault=encode@{rank}", "", "", "")  # at once, with the same new picture
    failed, *beside = ask(engine, *[picture(workload, label, seed=seed + 10) for label in labels])
    assert failed.rejected is not None
    expected = workload.generate(picture(workload, seed=seed + 10))
    assert [result.tokens for result in beside] == [expected] * 3
    counts.expect(images=4, hits=None, items=1)


def test_a_picture_on_which_ranks_differed_is_taken_by_nobody(
    shared: tuple[Engine, Counts], workload: Workload
) -> None:
    engine, counts = shared
    (differing,) = ask(engine, picture(workload, "fault=pixels@1", seed=2, max_tokens=100))
    assert "ranks consumed different inputs" in (differing.rejected or "")
    after = picture(workload, seed=2)
    assert ask(engine, after)[0].tokens == workload.generate(after)
    counts.expect(images=2, hits=0, items=1)


def test_an_abort_before_the_first_token_evicts(shared: tuple[Engine, Counts], workload: Workload) -> None:
    engine, counts = shared
    made = picture(workload, seed=3)
    arrived = msgspec.structs.replace(made.arrived, ids=(*made.arrived.ids, *[30] * 12_000))  # hundreds of steps
    engine.submit(arrived, made.frames)
    counts.expect(images=1, hits=0, items=1)
    assert engine.results[arrived.request].tokens == [], "too short a prompt for this test"
    engine.abort(arrived.request)
    counts.expect(images=0, hits=0, items=-1)
    after = picture(workload, seed=3)
    assert ask(engine, after)[0].tokens == workload.generate(after)
    counts.expect(images=1, hits=0, items=1)


def test_a_tiny_cache_stays_alike_on_all_ranks(workload: Workload) -> None:
    room = 2 * TOKENS * workload.config.text_config.hidden_size * 4  # two pictures
    with Engine(DEFAULT_MODEL, 2, chunk_tokens=16, embedding_cache_bytes=room) as engine:
        answers = [workload.generate(picture(workload, seed=seed)) for seed in range(4)]
        together, alone = (0, 1, 2, 0, 1, 2, 3), (2, 3, 3, 0, 3)
        for _ in range(2):
            results = ask(engine, *[picture(workload, seed=seed) for seed in together])
            assert [result.tokens for result in results] == [answers[seed] for seed in together]
            for seed in alone:  # evictions with hits between
                assert ask(engine, picture(workload, seed=seed))[0].tokens == answers[seed]
        total = 2 * (len(together) + len(alone))
        one, two = await_figures(
            engine, lambda seen: seen["images_encoded_total"] + seen["embedding_cache_hits_total"] == total
        )
        assert one == two
        assert one["embedding_cache_bytes"] == room
        assert one["embedding_cache_hits_total"] > 0


def test_what_is_taken_is_what_was_encoded_bit_for_bit_and_pixels_are_dropped() -> None:
    model = load(DEFAULT_MODEL, torch.float32, torch.device("cpu"), 0, 1, lambda tensor: None)
    text, vision = model.config.text_config, model.config.vision_config
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    values = torch.randn((64, width), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([model.config.image_token_id] * TOKENS)
    positions = torch.arange(TOKENS).expand(3, -1)
    logits: list[torch.Tensor] = []
    model.lm_head.register_forward_hook(lambda module, given, output: logits.append(output))
    caches = []

    def run(runner: ModelRunner, name: str, work: Work) -> weakref.ref[torch.Tensor]:
        pixels = values.clone()
        item = MultimodalItem(pixels, (1, 8, 8), 0, TOKENS, 0, 0, b"d" * 32)
        runner.admit(Admit(name, 0, 32), MultimodalInputs(ids, (item,), positions, 0), Sampling(1))
        assert name in runner.execute([msgspec.structs.replace(work, request=name)]).drawn
        return weakref.ref(pixels)

    for _ in range(2):
        caches.append(EmbeddingCache(0))
        heads = text.num_key_value_heads
        size = text.hidden_size // text.num_attention_heads
        pool = KVPool(text.num_hidden_layers, heads, 32, size, torch.float32, torch.device("cpu"))
        runner = ModelRunner(model, pool, caches[-1], torch.device("cpu"), True, lambda request, reason: None)
        run(runner, "encodes", Work("", 0, TOKENS, (0,), None, True, store=(0,)))
        taken = run(runner, "takes", Work("", 0, TOKENS, (), None, True, cached=(0,)))
        assert taken() is None, "something still holds the pixels of an item that was taken from the cache"
        assert runner.encoded == 1
    assert torch.equal(caches[0].take(b"d" * 32), caches[1].take(b"d" * 32))
    assert all(torch.equal(line, logits[0]) for line in logits)
    assert len(logits) == 4
