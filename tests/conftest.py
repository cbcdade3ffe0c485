"""Fixtures that several folders share, and what the processes of pytest-xdist share out among them.

Real tensor-parallel groups, kept between tests, since four ranks take long to start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from coatcheck.engine.model.config import DEFAULT_MODEL
from tests.support.engine import Engine
from tests.support.workload import Workload

STARTS = {"engine", "engines", "running", "server"}  # fixtures that start ranks, workers or a server
DEV_SHM = {
    "test_handoff.py",
    "test_leftovers.py",
    "test_memory.py",
    "test_serve.py",
}  # write there, or look what is left


@pytest.hookimpl(wrapper=True, tryfirst=True)  # marks before pytest selects by them, the order after it
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, None, None]:
    """Marks what starts processes by a fixture. In a process of pytest-xdist it comes first, since it takes longest."""
    for item in items:
        if STARTS & set(getattr(item, "fixturenames", ())):
            item.add_marker("processes")
    yield
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("processes") is None)


def group(test: str) -> str:
    """Tests of one group run in one process of pytest-xdist, one after the other: those that share fixtures or a place.

    ``test``: its id in pytest.
    """
    if ranks := re.search(r"\[(tp\d)[-\]]", test):
        return ranks[1]
    file = test.partition("::")[0]
    return "/dev/shm" if Path(file).name in DEV_SHM else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Makes one that goes by ``group``. (``--dist loadgroup`` of pytest-xdist 3.8 finds no groups under pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):  # type: ignore[misc, unused-ignore]
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    return Groups(config, log)


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
