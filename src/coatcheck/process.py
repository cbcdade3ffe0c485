"""Child processes of ours take a name, leave signals to their parent, and die with it."""

from __future__ import annotations

import ctypes
import os
import signal
import tempfile

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_NAME = 15

PARENT = "COATCHECK_PARENT"  # environment: pid of the process of ours that started this one

INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"  # environment: torch's directory for compiled code


def set_name(name: str) -> None:
    """Names this process as ``ps`` and ``top`` show it; the kernel keeps 15 characters."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def die_with_parent() -> None:
    """The kernel kills this process when the thread that started it ends. No effect if no process of ours did."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it ended before the call above
        os._exit(1)


def leave_signals_to_parent() -> None:
    """Ignores SIGINT and SIGTERM, which reach a whole terminal or service group at once.

    The parent drains, then stops us.
    """
    if PARENT in os.environ:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def quiet_libraries() -> None:
    """Children inherit it: transformers' hints and progress bars would come once per rank and worker.

    And torch._inductor, which transformers imports, makes a directory for compiled code on import and leaves it there
    for good. Nothing is compiled here: it is told a directory that exists.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault(INDUCTOR, tempfile.gettempdir())
