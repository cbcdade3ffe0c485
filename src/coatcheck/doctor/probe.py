"""The process that imports SGLang for the doctor: what goes wrong in there, goes wrong in there."""

from __future__ import annotations

import os
import sys

import msgspec

from coatcheck.integrations.sglang.targets import check


def main() -> None:
    """Writes the findings to stdout as JSON, and nothing else: what SGLang's modules print goes to stderr."""
    out = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with os.fdopen(out, "wb") as stdout:
        stdout.write(msgspec.json.encode(check()))


if __name__ == "__main__":
    main()
