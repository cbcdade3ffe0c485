"""SGLang's Engine in this process, with an image, shut down: what is left of ours. Run in SGLang's interpreter.

``python -m tests.support.sglang_engine MODEL IMAGE`` prints one line of JSON: what was seen while it ran, and after.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.sglang.server import CPU_OPTIONS

OPEN_S, GONE_S = 60.0, 15.0


def ours() -> dict[str, list[str]]:
    """Arenas that this process has open, and threads of ours."""
    arenas = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            arenas.append(str(link.readlink()))
        except OSError:
            continue
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("coatcheck")]
    return {"arenas": [name for name in arenas if "coatcheck-arena" in name], "threads": sorted(threads)}


def main(model: str, image: str) -> None:
    """One engine."""
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.server_args import prepare_server_args

    engine: Any = Engine(server_args=prepare_server_args(["--model-path", model, "--tp", "2", *CPU_OPTIONS]))
    deadline = time.monotonic() + OPEN_S
    while not ours()["arenas"] and time.monotonic() < deadline:
        time.sleep(0.1)
    question = "<|vision_start|><|image_pad|><|vision_end|>Describe the image."
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    answer = engine.generate(prompt=prompt, image_data=[image], sampling_params={"max_new_tokens": 4})
    during = ours()
    engine.shutdown()
    deadline = time.monotonic() + GONE_S
    while any(ours().values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    print(json.dumps({"answer": answer["text"], "during": during, "after": ours()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
