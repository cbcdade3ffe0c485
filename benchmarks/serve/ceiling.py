"""What the client of ``coatcheck bench serve`` can do: a server that does nothing but read and answer.

First the load of a large machine (96 clients, four pictures of 1024 x 1024 in each request, 32 tokens out, 4 text
streams of 200 tokens/s), answered so that 40 requests/s come of it; then answers at once: what client and fake server
reach together. The fake server is one thread of Python, and reads as fast as it can.
"""

from __future__ import annotations

import asyncio

from coatcheck.bench.serve.config import Load
from coatcheck.bench.serve.measure import measure
from tests.support.fake_openai import Behaviour, FakeServer

CASES = {
    "40 requests/s wanted": Behaviour(first_s=0.8, gap_s=0.052, text_gap_s=0.005),
    "as fast as it goes": Behaviour(first_s=0.0, gap_s=0.0, text_gap_s=0.005),
}
ROWS = ("requests/s", "pictures/s", "tokens/s", "load CPU %", "observer CPU %", "load late ms", "text tokens/s")


def main() -> None:
    """Prints the table as Markdown."""
    print("| | " + " | ".join(ROWS) + " |\n| --- |" + " ---: |" * len(ROWS))
    for name, behaviour in CASES.items():
        load = Load(clients=96, images=4, ramp_s=4.0, window_s=10.0)
        with FakeServer(behaviour, keeps=False) as server:
            run = asyncio.run(measure(server.url, load, contender="fake", round=1))
        assert run.errors == {}, run.errors
        cells = (
            run.requests_per_s,
            run.requests_per_s * 4,
            run.tokens_received / load.window_s,
            *(run.extra[key] for key in ("load_cpu_percent", "observer_cpu_percent", "load_lag_ms")),
            run.extra["text_tokens_per_s"],
        )
        print(f"| {name} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
