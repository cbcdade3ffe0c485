"""Verifying a request: every rank digests the inputs it feeds to the model, and the entry rank compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from coatcheck.delivery.readiness import Rejection
from coatcheck.engine.model.runner import Outcome, Runner, prefilled
from coatcheck.engine.records import Admit, Consumed, Report, Sampling, Verified, Work
from coatcheck.engine.strategies.inputs import MultimodalInputs

OPEN_KEPT = 1024  # requests whose digests are incomplete, the newest: one that was aborted never gets complete


class VerifyingRunner:
    """A :class:`Runner` that reports a digest of the inputs in the step that completes a prefill, where asked to."""

    def __init__(self, runner: Runner, rank: int, report: Callable[[Report], None]) -> None:
        self._runner = runner
        self._rank = rank
        self._report = report
        self._inputs: dict[str, MultimodalInputs] = {}

    def admit(self, admit: Admit, inputs: MultimodalInputs, sampling: Sampling) -> None:
        """See :class:`Runner`."""
        if admit.verify:
            self._inputs[admit.request] = inputs
        self._runner.admit(admit, inputs, sampling)

    def release(self, request: str) -> None:
        """See :class:`Runner`."""
        self._inputs.pop(request, None)
        self._runner.release(request)

    def evict(self, digests: Sequence[bytes]) -> None:
        """See :class:`Runner`."""
        self._runner.evict(digests)

    def execute(self, work: Sequence[Work]) -> Outcome:
        """See :class:`Runner`."""
        for request in prefilled(work):  # before the runner says that the pixels are consumed
            if (inputs := self._inputs.pop(request, None)) is not None:
                self._report(Consumed(request, self._rank, inputs.digest()))
        return self._runner.execute(work)


class Digests:
    """The entry rank's comparison. Invariant: a request is verified only by equal digests from all ranks."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._digests: dict[str, dict[int, str]] = {}

    def consumed(self, report: Consumed) -> Verified | Rejection | None:
        """The verdict once every rank has reported; None before that."""
        digests = self._digests.setdefault(report.request, {})
        digests[report.rank] = report.digest
        if len(self._digests) > OPEN_KEPT:
            del self._digests[next(iter(self._digests))]
        if len(digests) < self._ranks:
            return None
        del self._digests[report.request]
        if len(set(digests.values())) == 1:
            return Verified(report.request, report.digest)
        listing = ", ".join(f"rank {rank}: {digest[:16]}" for rank, digest in sorted(digests.items()))
        return Rejection(report.request, f"ranks consumed different inputs ({listing})", None)
