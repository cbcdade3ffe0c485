"""A server's arena, from the roll call on: opened on a thread while the server starts, so that nobody waits for it.

Until it is open, and if it cannot be, requests take SGLang's own way.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from coatcheck.arena.available import available
from coatcheck.errors import ConfigError
from coatcheck.integrations.sglang.arena_owner import ArenaOwner, RankAddress
from coatcheck.integrations.sglang.pace import Pace, sha256_seconds_per_byte
from coatcheck.integrations.sglang.rollcall import Facts, stand_aside
from coatcheck.integrations.sglang.settings import Settings
from coatcheck.integrations.sglang.sizing import MIB, default_bytes
from coatcheck.process import set_name

logger = logging.getLogger(__name__)

ATTACH_S = 60.0  # until every rank has mapped the arena, which takes tenths of a second a GiB


class Opening:
    """One server's. ``ready`` is the arena's owner, once that carries requests."""

    def __init__(self, settings: Settings, ranks: Sequence[Facts]) -> None:
        self.settings = settings
        self._ranks = ranks
        self._owner: ArenaOwner | None = None
        self.done = threading.Event()  # opened, or not to be
        threading.Thread(target=self._open, name="coatcheck-opening", daemon=True).start()

    @property
    def ranks(self) -> int:
        """Of the server."""
        return len(self._ranks)

    @property
    def whole(self) -> bool:
        """Images may be processed in workers: it is so set, and every rank's model takes them compact."""
        return self.settings.whole and all(rank.whole for rank in self._ranks)

    @property
    def ready(self) -> ArenaOwner | None:
        """None: not yet, or not any more."""
        return None if self._owner is None or self._owner.closed.is_set() else self._owner

    def _open(self) -> None:
        set_name("coatcheck-opening")
        try:
            size, chosen = self._size()
            pace = Pace(sha256_seconds_per_byte())
            addresses = [RankAddress(rank.tickets, rank.pid) for rank in self._ranks]
            owner = ArenaOwner(size, addresses, pace, poison=self.settings.poison)
            problem = owner.wait_attached(ATTACH_S)
            if problem:
                owner.close()
                raise ConfigError(problem)
            self._owner = owner
            logger.info(
                "coatcheck carries multimodal inputs to %d ranks: an arena of %d MiB (%s), %.0f%% of requests",
                len(self._ranks), size // MIB, chosen, 100 * self.settings.share,
            )  # fmt: skip
        except ConfigError as error:
            stand_aside(str(error))
        except Exception as error:  # whatever it is, SGLang serves
            logger.exception("coatcheck could not open its arena")
            stand_aside(f"{type(error).__name__}: {error}")
        finally:
            self.done.set()

    def _size(self) -> tuple[int, str]:
        """Bytes of the arena, and who chose them. Raises ConfigError."""
        if self.settings.arena_bytes is not None:
            return self.settings.arena_bytes, "as set"
        least = min(self._ranks, key=lambda rank: rank.pool_tokens)
        size = default_bytes(
            *(available().nbytes, least.pool_tokens, least.running, least.input_tokens, least.token_bytes),
            whole=self.whole,
        )
        return size, "auto"
