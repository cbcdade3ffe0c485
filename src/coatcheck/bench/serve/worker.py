"""A child process of a measurement: ``load`` or ``observe``, as the first line of stdin says (``Job``).

stdout: a line when it is ready, then, after a line with the ramp's start on the monotonic clock, how many requests have
ended, now and then, and in the end what was seen.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

import msgspec

from coatcheck.bench.serve.loading import Loading
from coatcheck.bench.serve.observing import Observing
from coatcheck.bench.serve.records import Job, Line, say
from coatcheck.process import die_with_parent, leave_signals_to_parent, set_name


def main() -> None:
    """Runs the job."""
    die_with_parent()
    leave_signals_to_parent()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    set_name(f"coatcheck-{job.role}")
    role = Loading(job) if job.role == "load" else Observing(job)
    say(Line(ready=True))
    begin = sys.stdin.buffer.readline()
    if begin:  # else the parent thought better of it
        with suppress(BrokenPipeError):
            say(Line(seen=asyncio.run(role.run(float(begin)))))


if __name__ == "__main__":
    main()
