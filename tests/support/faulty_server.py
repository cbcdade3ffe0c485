"""``coatcheck serve`` whose ranks are those of tests/support/faulty_rank.py."""

from __future__ import annotations

import functools
import sys
from unittest import mock

from coatcheck import cli
from coatcheck.engine.launcher import serve
from coatcheck.engine.launcher.processes import RankProcesses

if __name__ == "__main__":
    ranks = functools.partial(RankProcesses, command=(sys.executable, "-m", "tests.support.faulty_rank"))
    with mock.patch.object(serve, "RankProcesses", ranks):
        cli.main()
