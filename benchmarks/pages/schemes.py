"""The measurements of docs/analysis.md: ``python -m benchmarks.pages.schemes measure DIR``, then ``... write DIR``.

``measure`` runs ``coatcheck bench engine`` for every case whose file is missing in DIR, one after the other (about an
hour on two cores; nothing else should run meanwhile). ``write`` makes the tables and the two plots of docs/analysis
from the files.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pages.schemes_report import write

STRATEGIES = ("--strategies", "object-inline,object-background,dict-inline,dict-background")
NULL = ("--input", "tensors", "--runner", "null")
SIZES = {  # payload: options
    "1mb": ("--image", "224x224"),
    "5mb": ("--image", "448x448"),
    "26mb": ("--image", "1024x1024"),
    "103mb": ("--image", "1024x1024", "--images-per-request", "4"),
}


@dataclass(frozen=True)
class Case:
    """One run of the benchmark."""

    name: str
    options: tuple[str, ...]  # its strategies among them


def cases() -> Iterator[Case]:
    """Short ones first."""
    yield Case("text", (*STRATEGIES, *NULL, "--images-per-request", "0", "--text-tokens", "1387"))
    for size, image in SIZES.items():
        for tp in (2, 4):
            for concurrency in (16, 100):
                if (size, concurrency) == ("103mb", 100):
                    continue  # 10 GB, once on each rank and once more on the entry rank: more than 24 GiB
                rounds = "3" if size == "103mb" else "5"
                requests = {"103mb": "32", "26mb": "100" if concurrency == 100 else "64"}.get(size, "200")
                options = ("--tp", str(tp), "--concurrency", str(concurrency), "--requests", requests)
                yield Case(f"{size}-tp{tp}-c{concurrency}", (*STRATEGIES, *NULL, *image, *options, "--rounds", rounds))
    yield Case("26mb-tp2-c16-step20", (*STRATEGIES, *NULL, *SIZES["26mb"], "--step-ms", "20"))
    yield Case("5mb-tp2-c16-model", (*STRATEGIES, "--input", "http", "--runner", "model", *SIZES["5mb"]))


def measure(cases: Iterable[Case], directory: Path) -> int:
    """Runs the cases whose file is missing. Exit status: 1 if one failed."""
    status = 0
    directory.mkdir(parents=True, exist_ok=True)
    for case in cases:
        path = directory / f"{case.name}.json.gz"
        if path.exists():
            continue
        command = [
            sys.executable,
            "-m",
            "coatcheck",
            "bench",
            "engine",
            *case.options,
            "--json",
            str(path),
        ]
        print("coatcheck bench engine", *case.options, flush=True)
        status |= subprocess.run(command, check=False).returncode
    return status


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("measure", "write"))
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    if args.action == "measure":
        return measure(cases(), args.directory)
    write(args.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
