"""Fixtures that several folders share.

Real tensor-parallel groups, kept between tests, since four ranks take long to start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coatcheck.engine.model.config import DEFAULT_MODEL
from tests.support.engine import Engine
from tests.support.workload import Workload


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The default model; the front end reads everything of it but the weights."""
    return DEFAULT_MODEL


@pytest.fixture(scope="session")
def workload() -> Workload:
    """Makes requests for the default model."""
    return Workload(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def engines() -> Iterator[Callable[[int], Engine]]:
    """``engines(ranks)``: a group of that size; one at a time runs, the others are stopped, as there are few cores."""
    current: list[Engine] = []

    def get(ranks: int) -> Engine:
        if current and current[0].size != ranks:
            current.pop().__exit__(None, None, None)
        if not current:
            current.append(Engine(DEFAULT_MODEL, ranks))
        return current[0]

    yield get
    for engine in current:
        engine.__exit__(None, None, None)


@pytest.fixture(params=[1, 2, 4], ids=lambda ranks: f"tp{ranks}", scope="session")
def engine(request: pytest.FixtureRequest, engines: Callable[[int], Engine]) -> Any:
    """A group of 1, 2 and 4 ranks."""
    return engines(request.param)
