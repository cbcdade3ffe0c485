"""What a check looked at, what it found there and what that means: of ``coatcheck doctor`` and of the SGLang plugin."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["ok", "warning", "failed"]


class Finding(msgspec.Struct, frozen=True):
    """One check's result, in words for whoever has to act on it."""

    what: str  # what was looked at
    found: str  # what is there
    means: str  # what follows from it; of a failed one, what to do
    status: Status  # failed: what depends on it will not work; warning: it will, within what ``means`` says
