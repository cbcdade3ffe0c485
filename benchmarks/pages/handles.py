"""The measurements of docs/handles.md: ``python -m benchmarks.pages.handles measure DIR``, then ``... write DIR``.

``measure`` runs ``coatcheck bench engine`` for every case whose file is missing in DIR, one after the other, with all
strategies (most of an hour on two cores; nothing else should run meanwhile). ``write`` makes the page's tables and its
plot from the files. The largest case is in parts, one for each strategy that carries float32, for a machine with 128
GiB; one with less can leave them out (``--only`` names of others).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.pages.handles_report import write
from benchmarks.pages.schemes import NULL, Case, measure

WORKLOADS = {  # name: options; requests of a round at 16 and at 100 at once
    "image": (("--image", "1024x1024"), ("64", "100")),
    "images": (("--image", "1024x1024", "--images-per-request", "4", "--arena-mib", "2048"), ("32", "100")),
    "video": (("--video", "made"), ("48", "100")),
}
SMALL = {  # as many handles as the large ones have, and few bytes
    "small": ("--image", "224x224"),
    "smalls": ("--image", "224x224", "--images-per-request", "4"),
}
TOO_LARGE = ("images", 4, 100)  # wide: more than the 24 GiB of the machine with two cores
HANDLES = ("--strategies", "handle-inline,handle-background,auto")
WIDE = ("object-inline", "object-background", "dict-inline", "dict-background")


def cases() -> Iterator[Case]:
    """Short ones first: handles alone, wide and compact, against text as long; then all strategies."""
    for tp in (2, 4):
        base = (*NULL, "--tp", str(tp), "--requests", "64", "--rounds", "5")
        for name, tokens in (("small", 82), ("smalls", 280), ("image", 1387), ("images", 5500)):
            text = ("--strategies", "handle-background", "--images-per-request", "0", "--text-tokens", str(tokens))
            image = SMALL[name] if name in SMALL else WORKLOADS[name][0]
            yield Case(f"{name}-text-tp{tp}", (*base, *text))
            yield Case(f"{name}-wide-tp{tp}", (*base, *HANDLES, *image, "--pixels", "float32"))
    step = (*NULL, "--step-ms", "20", "--rounds", "3", "--strategies", "all")
    yield Case("image-step20", (*step, *WORKLOADS["image"][0]))
    yield Case("image-text-step20", (*step, "--images-per-request", "0", "--text-tokens", "1387"))
    for concurrency in (16, 100):
        for name, (options, requests) in WORKLOADS.items():
            for tp in (2, 4):
                rounds = "2" if concurrency == 16 else "1"
                more = ("--tp", str(tp), "--concurrency", str(concurrency), "--rounds", rounds)
                most = (*options, *more, "--requests", requests[concurrency == 100])
                if (name, tp, concurrency) == TOO_LARGE:
                    yield Case(f"{name}-handles-tp{tp}-c{concurrency}", (*NULL, *HANDLES, *most))
                    for wide in WIDE:
                        some = f"{wide},{HANDLES[1] if wide == WIDE[-1] else 'handle-background'}"
                        yield Case(f"{name}-tp{tp}-c{concurrency}-{wide}", (*NULL, "--strategies", some, *most))
                else:
                    yield Case(f"{name}-tp{tp}-c{concurrency}", (*NULL, "--strategies", "all", *most))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("measure", "write"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    args = parser.parse_args()
    if args.action == "measure":
        return measure((case for case in cases() if args.only in case.name), args.directory)
    write(args.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
