"""Processes that a test looks at while they end."""

from __future__ import annotations

import psutil


def runs(pid: int) -> bool:
    """False once it has ended, reaped or not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
