"""What the entry rank hands out covers every sequence exactly once, within the budgets."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from coatcheck.engine.model.embedding_book import EmbeddingBook
from coatcheck.engine.model.schedule import Schedule
from coatcheck.engine.records import Arrived, Sampling, Work
from coatcheck.intake.records import Item, Tensor, prompt_tokens

MERGE = 4  # patches per token


def request(
    name: str, parts: list[tuple[int, int]], max_tokens: int, stop: tuple[int, ...] = (), digests: bool = False
) -> Arrived:
    """``parts``: (text tokens, then image tokens; 0: no image). ``digests``: images of one size are the same."""
    items: list[Item] = []
    length = 0
    for text, image in parts:
        length += text
        if image:
            shape = (image * MERGE, 8)
            digest = bytes([image]) * 32 if digests else b""
            items.append(Item(Tensor(len(items), shape, "float32"), (1, 2, image * 2), length, image, digest))
            length += image
    ids = tuple(range(length + 1 - sum(item.count - 1 for item in items)))
    return Arrived(name, "dict-inline", ids, tuple(items), Sampling(max_tokens, stop_ids=stop))


parts = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), min_size=1, max_size=4)
requests = st.lists(st.tuples(parts, st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(requests=requests, chunk=st.integers(6, 24), patches=st.integers(1, 64), cache=st.integers(0, 30))
def test_work_covers_every_sequence_once_in_order(
    requests: list[tuple[list[tuple[int, int]], int, int]], chunk: int, patches: int, cache: int
) -> None:
    schedule = Schedule(chunk, patches, EmbeddingBook(cache, 1))
    arrived = {f"r{i}": (request(f"r{i}", p, most, (), True), joins) for i, (p, most, joins) in enumerate(requests)}
    computed = dict.fromkeys(arrived, 0)
    encoded = dict.fromkeys(arrived, 0)
    drawn = dict.fromkeys(arrived, 0)
    ended: set[str] = set()
    for step in range(400):
        for what, joins in arrived.values():
            if joins == step:
                schedule.admit(what)
        work = schedule.compose()
        schedule.embeddings.close_plan()
        assert sum(part.count for part in work) <= chunk
        assert len({part.request for part in work}) == len(work)
        assert work or not len(schedule), "something runs, but no work is handed out"
        encoding = [arrived[p.request][0].items[i].pixels.shape[0] for p in work for i in p.encode]
        assert sum(encoding) <= patches or len(encoding) == 1
        draws = {}
        for part in work:
            what = arrived[part.request][0]
            assert part.start == computed[part.request]
            computed[part.request] += part.count
            items = sorted([*part.encode, *part.cached])
            assert items == list(range(encoded[part.request], encoded[part.request] + len(items)))
            assert set(part.store) <= set(part.encode)
            encoded[part.request] += len(items)
            for index, item in enumerate(what.items):
                if item.start < computed[part.request]:
                    assert index < encoded[part.request], "placeholders computed before their image was encoded"
            assert part.sample == (computed[part.request] >= prompt_tokens(what.ids, what.items))
            if part.sample:
                draws[part.request] = 1000 + drawn[part.request]
        for tokens in schedule.absorb(draws):
            drawn[tokens.request] += 1
            if tokens.finish:
                assert tokens.request not in ended
                ended.add(tokens.request)
                schedule.end(tokens.request)
    assert ended == set(arrived)
    for name, (what, _) in arrived.items():
        assert drawn[name] == what.sampling.max_tokens
        assert computed[name] == prompt_tokens(what.ids, what.items) + drawn[name] - 1
        assert encoded[name] == len(what.items)


def test_decoding_goes_first() -> None:
    schedule = Schedule(8, 64, EmbeddingBook(0, 1))
    schedule.admit(request("long", [(30, 0)], 2))
    schedule.admit(request("short", [(1, 0)], 2))
    schedule.compose()  # 8 of long's 31 tokens
    schedule.compose()
    schedule.compose()
    work = schedule.compose()  # long's last 7 tokens, then 1 of short's 2
    assert [(part.request, part.count) for part in work] == [("long", 7), ("short", 1)]
    schedule.absorb({"long": 5})
    assert [(part.request, part.token) for part in schedule.compose()] == [("long", 5), ("short", None)]
    schedule.absorb({"long": 6, "short": 7})
    schedule.end("long")
    assert schedule.compose() == (Work("short", 2, 1, (), 7, True),)


def test_what_the_cache_has_costs_no_budget_and_is_kept_after_the_first_token_alone() -> None:
    schedule = Schedule(64, 8, EmbeddingBook(10, 1))
    schedule.admit(request("first", [(1, 2), (1, 2)], 2, digests=True))  # one picture twice, as large as the budget
    assert schedule.compose() == (Work("first", 0, 7, (0,), None, True, store=(0,), cached=(1,)),)
    schedule.admit(request("early", [(1, 2)], 2, digests=True))
    assert schedule.compose() == (Work("early", 0, 4, (0,), None, True),), "taken before anybody knows it is sound"
    schedule.absorb({"first": 5, "early": 5})
    schedule.end("first")
    schedule.admit(request("late", [(1, 2), (1, 1), (1, 2)], 2, digests=True))
    schedule.embeddings.close_plan()
    assert schedule.compose()[1] == Work("late", 0, 9, (1,), None, True, store=(1,), cached=(0, 2))
    schedule.end("late")
    assert schedule.embeddings.close_plan() == (b"\1" * 32,), "late ended before it could prove what it encoded"


def test_a_stop_token_ends_and_unknown_requests_are_ignored() -> None:
    schedule = Schedule(8, 64, EmbeddingBook(0, 1))
    schedule.admit(request("a", [(1, 0)], 5, stop=(9,)))
    schedule.compose()
    (tokens,) = schedule.absorb({"a": 9, "gone": 1})
    assert tokens.finish == "stop"
