"""Every failure that coatcheck reports by name.

::

    CoatcheckError
    +-- ConfigError            an option is out of range or unknown; names the option and what is allowed
    |   +-- UnknownStrategy    no strategy of that name; lists the known ones
    |   +-- UnsupportedModel   the checkpoint is of an architecture we do not serve
    +-- RequestError           one request cannot be served; the server goes on
    |   +-- BadRequest         the client's fault: 4xx, names the field
    |   +-- Overloaded         back pressure: 503 with Retry-After
    |   +-- RequestRejected    the ranks rejected it: the reason, and on which rank
    |   +-- WorkerFailed       a front-end worker failed or died on it: 500, may be sent again
    +-- ArenaError             a payload's place in shared memory
    |   +-- ArenaFull          no room now; wait, then back pressure
    |   +-- PayloadTooLarge    larger than the whole arena: 413, says both sizes
    |   +-- HandleInvalid      a handle points outside the arena's payloads, or is not one of ours
    |   +-- HandleStale        the block behind a handle has been given to another payload
    +-- MaterializeError       a rank could not turn what arrived into inputs (becomes RequestRejected)
    +-- WireError              bytes on a wire are not a record of ours
    +-- RanksDisagree          ranks hold different inputs or tokens for one request
    +-- RankLost               a rank ended, or did not answer within its bounded time
"""

from __future__ import annotations


class CoatcheckError(Exception):
    """Base of all errors raised by coatcheck."""


class ConfigError(CoatcheckError):
    """An option is out of range or unknown. The message names the option and the allowed values."""


class UnknownStrategy(ConfigError):
    """No strategy has that name. The message lists the known names."""


class UnsupportedModel(ConfigError):
    """The checkpoint's architecture is not one we serve. The message lists the supported ones."""


class RequestError(CoatcheckError):
    """One request cannot be served. Nothing else is affected."""


class BadRequest(RequestError):
    """The client's request is at fault.

    ``param`` names the field (None if it is the body as a whole); ``code`` is a stable identifier of the fault.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class Overloaded(RequestError):
    """Back pressure: no room for this request now. ``retry_after`` is in seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestRejected(RequestError):
    """The ranks rejected the request, all of them, for the reason in the message."""


class WorkerFailed(RequestError):
    """A worker of the front end failed on the request, died, or took too long. Sending it again is safe."""


class ArenaError(CoatcheckError):
    """A payload's place in shared memory."""


class ArenaFull(ArenaError):
    """There is no room for the payload now."""


class PayloadTooLarge(ArenaError):
    """The payload is larger than the whole arena. The message says both sizes."""


class HandleInvalid(ArenaError):
    """The handle points outside the arena's payloads, or contradicts itself. Nothing was read."""


class HandleStale(ArenaError):
    """The block behind the handle belongs to another payload by now."""


class MaterializeError(CoatcheckError):
    """What arrived on a rank cannot be turned into inputs for the model."""


class WireError(CoatcheckError):
    """Bytes received are not a record of ours, or their frames do not match it."""


class RanksDisagree(CoatcheckError):
    """Two ranks consumed different inputs for the same request."""


class RankLost(CoatcheckError):
    """A rank's process ended, or it did not answer within a bounded time."""
