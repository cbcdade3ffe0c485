"""Who notices that a rank has ended, and what is said of it."""

from __future__ import annotations

import asyncio
import sys

from coatcheck.engine.http.rank_link import RankLink
from coatcheck.engine.launcher.processes import RankProcesses, watch
from coatcheck.engine.model.config import EngineConfig
from coatcheck.engine.ranks.config import RankConfig
from coatcheck.engine.ranks.settings import RankSettings

SETTINGS = RankSettings(EngineConfig(), RankConfig(), "", "")
ENDS = (sys.executable, "-c", "import os, sys; sys.exit(3 * int(os.environ['RANK']))")
STAYS = (sys.executable, "-c", "import time; time.sleep(60)")


async def bounded(ranks: RankProcesses | None, link: RankLink) -> str:
    return await asyncio.wait_for(watch(ranks, link), 10)


def test_a_rank_that_ends_is_told_to_the_link() -> None:
    link = RankLink()
    ranks = RankProcesses(SETTINGS, 2, ENDS)
    try:
        assert ranks.wait(10)
        loss = asyncio.run(bounded(ranks, link))
    finally:
        ranks.kill()
    assert loss == link.loss == f"rank 0 (pid {ranks.pids[0]}) ended with status 0"


def test_a_loss_that_the_link_heard_of_ends_the_watch_too() -> None:
    link = RankLink()
    link.lost("a rank is gone")
    ranks = RankProcesses(SETTINGS, 1, STAYS)
    try:
        assert asyncio.run(bounded(ranks, link)) == "a rank is gone"
    finally:
        ranks.kill()
    assert asyncio.run(bounded(None, link)) == "a rank is gone"
