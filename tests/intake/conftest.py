"""Every asynchronous test on both event loops."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops, since uvicorn takes uvloop where it is installed."""
    return "asyncio", {"use_uvloop": request.param}
