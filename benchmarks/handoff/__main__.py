"""``python -m benchmarks.handoff``. A user's mistake is one line on stderr and exit status 2, as with ``coatcheck``."""

from __future__ import annotations

import sys

from benchmarks.handoff.command import app
from coatcheck.errors import CoatcheckError, ConfigError

if __name__ == "__main__":
    try:
        app(prog_name="python -m benchmarks.handoff")
    except CoatcheckError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
