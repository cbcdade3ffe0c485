"""Admission: who decides, and when, that a request runs. See :mod:`coatcheck.admission.ledger`."""

from coatcheck.admission.ledger import Decision, Ledger, LedgerStatistics, Rejection
from coatcheck.admission.parked import Parked

__all__ = ["Decision", "Ledger", "LedgerStatistics", "Parked", "Rejection"]
