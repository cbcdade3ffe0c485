"""The same engine on GPUs: NCCL between ranks, float32 so that tokens compare with ``model.generate()`` on the CPU."""

from __future__ import annotations

import pytest
import torch

from coatcheck.engine.model.config import DEFAULT_MODEL
from coatcheck.engine.strategies.table import STRATEGIES
from tests.support.engine import Engine
from tests.support.workload import Workload

GPUS = torch.cuda.device_count()

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300), pytest.mark.processes]

GRIDS: list[list[tuple[int, int]]] = [[], [(8, 8)], [(8, 12), (16, 8)], [(32, 32)]]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_inputs_and_tokens_are_those_of_the_cpu(ranks: int, workload: Workload) -> None:
    if ranks > GPUS:
        pytest.skip(f"needs {ranks} CUDA devices, there are {GPUS}")
    with Engine(DEFAULT_MODEL, ranks, device="cuda", dtype="float32") as engine:
        for strategy in STRATEGIES:
            for seed, grids in enumerate(GRIDS):
                request = workload.request(f"{strategy} {seed}", strategy, grids, text=3 + 5 * seed, seed=seed)
                engine.submit(request.arrived, request.frames)
                (result,) = engine.wait(request.arrived.request)
                assert result.digest == workload.digest(request)
                assert result.tokens == workload.generate(request)
