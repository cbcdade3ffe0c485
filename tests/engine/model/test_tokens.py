"""Tokens of a real group: prompts and images split over steps, and seeded sampling in company."""

from __future__ import annotations

import pytest

from coatcheck.engine.model.config import DEFAULT_MODEL
from coatcheck.engine.records import Sampling
from tests.support.engine import Engine, Result
from tests.support.workload import Workload

pytestmark = pytest.mark.timeout(150)


def test_split_prompts_and_images_change_no_token(workload: Workload) -> None:
    # 32 tokens and one image a step: the images below have 256, 24 and 64 tokens, so each is fed in parts.
    with Engine(DEFAULT_MODEL, 2, chunk_tokens=32, encode_patches=16) as engine:
        grids: list[list[tuple[int, int]]] = [[(32, 32)], [(8, 12), (16, 16)], []]
        requests = [
            workload.request(f"split {index}", "dict-inline", these, text=40 + 7 * index, seed=index)
            for index, these in enumerate(grids)
        ]
        for request in requests:  # alone
            engine.submit(request.arrived, request.frames)
            assert engine.wait(request.arrived.request)[0].tokens == workload.generate(request)
        for index, these in enumerate(grids):  # and together: prefills of several, decoding between
            again = workload.request(f"again {index}", "dict-inline", these, text=40 + 7 * index, seed=index)
            engine.submit(again.arrived, again.frames)
        results = engine.wait(*[f"again {index}" for index in range(len(grids))])
        assert [result.tokens for result in results] == [workload.generate(request) for request in requests]


def test_seeded_sampling_equals_itself_run_alone(engine: Engine, workload: Workload) -> None:
    def submit(name: str, seed: int) -> str:
        sampling = Sampling(24, temperature=2, top_p=0.95, seed=seed)
        request = workload.request(f"{name} tp{engine.size}", "dict-inline", [(8, 8)], sampling=sampling)
        engine.submit(request.arrived, request.frames)
        return request.arrived.request

    def run(*names: str) -> list[Result]:
        return engine.wait(*names)

    (alone,) = run(submit("alone", 5))
    (other,) = run(submit("other", 6))
    company = run(*[submit(f"company {index}", 5) for index in range(6)])
    assert alone.tokens != other.tokens
    assert [result.tokens for result in company] == [alone.tokens] * 6


def test_a_temperature_next_to_nothing_is_greedy_and_harms_nobody(engine: Engine, workload: Workload) -> None:
    for temperature in (1e-300, 1e-39, 1e-5):
        sampling = Sampling(6, temperature=temperature)
        name = f"cold {temperature} tp{engine.size}"
        request = workload.request(name, "dict-inline", [(8, 8)], sampling=sampling)
        engine.submit(request.arrived, request.frames)
        assert engine.wait(name)[0].tokens == workload.generate(request)
