"""Are answers the same with mode ``whole``, and does no rank read a picture too late? On a GPU, with the default model.

``python -m benchmarks.gpu.answers --model DIR --out FILE.json`` starts two servers side by side, SGLang as installed
and SGLang with the plugin in an arena of ``--arena-mib`` whose freed blocks are overwritten, and says:

* *features*: how far those of SGLang's processor, as this server has it (on CUDA: on the GPU), are from the worker's.
* *tokens*: of ``--questions`` held-out questions, asked one at a time, how many answers have the same tokens on both.
* *soak*: of ``--soak`` questions about as many pictures, asked by ``--clients`` at once, how many were answered
  rightly. Beside it what the server without the plugin answers rightly of the first tenth of them.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from benchmarks.gpu import counters
from benchmarks.gpu.contenders import CONTENDERS, Base, command, cpu, environment
from benchmarks.gpu.servers import Fleet, Server, plugin_directory
from training.evaluate import BUCKETS, LARGE_BUCKETS, Sample, held_out, load_processor

START_S = 240.0
ANSWER_S = 60.0
SMALL = ((112, 195),)  # the soak's pictures: many fit into the arena, and none stays long
SIDES = (*BUCKETS, *LARGE_BUCKETS)
PICTURES = 60  # whose features are compared
AHEAD = 512  # questions that are drawn and encoded before they are asked
Question = tuple[dict[str, Any], str]  # a body for /generate, the right answer


def base(tp: int) -> Base:
    """On GPUs, with the model's own weights and little memory."""
    return Base(
        python=sys.executable,
        environment={"HF_HUB_OFFLINE": "1", "SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "0"},
        options=(
            *("--tp", str(tp), "--max-total-tokens", "200000", "--mem-fraction-static", "0.4"),
            *("--attention-backend", "triton", "--mm-attention-backend", "triton_attn"),
            *("--sampling-backend", "pytorch", "--cuda-graph-max-bs-decode", "128", "--enable-metrics"),
        ),
        paths=(),
    )


def encoded(sample: Sample, kind: str) -> bytes:
    """Its picture, JPEG or PNG."""
    file = io.BytesIO()
    sample.images[0].save(file, kind, **({"quality": 92} if kind == "JPEG" else {}))
    return file.getvalue()


_tokenizer: Any = None


def drawn(numbers: Sequence[int], seed: int, buckets: Sequence[tuple[int, int]], model: Path) -> list[Question]:
    """Those of the seed's held-out questions. In a process of a pool, since drawing takes milliseconds."""
    global _tokenizer
    _tokenizer = _tokenizer or load_processor(model)[0]
    made = []
    for number in numbers:
        (sample,) = held_out(1, seed * 1_000_000 + number, buckets, ("describe",))
        prompt = _tokenizer.apply_chat_template(sample.messages(), tokenize=False, add_generation_prompt=True)
        kind = ("JPEG", "PNG")[number % 2]
        url = f"data:image/{kind.lower()};base64,{base64.b64encode(encoded(sample, kind)).decode()}"
        sampling = {"temperature": 0, "max_new_tokens": 100}
        made.append(({"text": prompt, "image_data": [url], "sampling_params": sampling}, sample.answer))
    return made


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    """SGLang's answer."""
    reply = await client.post("/generate", json=body)
    reply.raise_for_status()
    made: dict[str, Any] = reply.json()
    return made


async def tokens(urls: Sequence[str], questions: Sequence[Question]) -> dict[str, Any]:
    """Each question to both servers at a time, one question after the other."""
    found: dict[str, Any] = {"questions": len(questions), "equal": 0, "right": [0, 0], "differ": []}
    async with (
        httpx.AsyncClient(base_url=urls[0], timeout=ANSWER_S) as one,
        httpx.AsyncClient(base_url=urls[1], timeout=ANSWER_S) as other,
    ):
        for body, right in questions:
            answers = await asyncio.gather(ask(one, body), ask(other, body))
            found["equal"] += answers[0]["output_ids"] == answers[1]["output_ids"]
            found["right"] = [n + (a["text"] == right) for n, a in zip(found["right"], answers, strict=True)]
            if answers[0]["output_ids"] != answers[1]["output_ids"]:
                found["differ"].append([right, *(answer["text"] for answer in answers)])
    return found


async def soak(url: str, count: int, clients: int, seed: int, model: Path, seconds: float) -> dict[str, Any]:
    """As many questions, each about a picture of its own, or as many as fit into the time."""
    started, found = time.monotonic(), {"asked": 0, "right": 0, "errors": 0}
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 2) - 4)) as pool:
        loop, step = asyncio.get_running_loop(), 16
        parts = iter(range(0, count, step))

        def begin() -> Iterator[asyncio.Future[list[Question]]]:
            for at in parts:
                numbers = range(at, min(at + step, count))
                yield loop.run_in_executor(pool, drawn, numbers, seed, SMALL, model)

        drawing, beginning = asyncio.Queue[asyncio.Future[list[Question]]](), begin()
        for _ in range(AHEAD // step):
            if (part := next(beginning, None)) is not None:
                drawing.put_nowait(part)

        async def questions() -> AsyncIterator[Question]:
            while not drawing.empty() and time.monotonic() - started < seconds:
                part = drawing.get_nowait()
                if (more := next(beginning, None)) is not None:
                    drawing.put_nowait(more)
                for question in await part:
                    yield question

        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(base_url=url, timeout=ANSWER_S, limits=limits) as client:
            gate = asyncio.Semaphore(clients)

            async def one(body: dict[str, Any], right: str) -> None:
                try:
                    answer = await ask(client, body)
                    found["right"] += answer["text"] == right
                except httpx.HTTPError:
                    found["errors"] += 1
                finally:
                    gate.release()

            asking = set[asyncio.Task[None]]()
            async for body, right in questions():
                await gate.acquire()
                found["asked"] += 1
                task = asyncio.create_task(one(body, right))
                asking.add(task)
                task.add_done_callback(asking.discard)
            await asyncio.gather(*asking)
    return {**found, "seconds": round(time.monotonic() - started, 1)}


def features(model: Path, device: str) -> dict[str, Any]:
    """SGLang's processor, as a server on that device has it, beside the worker's. In a process of its own."""
    from PIL import Image
    from sglang.srt import runtime_context
    from sglang.srt.multimodal.processors.qwen_vl import QwenVLImageProcessor
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils.hf_transformers_utils import get_processor
    from transformers import AutoConfig

    from coatcheck.integrations.sglang import image_worker
    from coatcheck.integrations.sglang.whole import config

    attention = ("torch_native", "sdpa") if device == "cpu" else ("triton", "triton_attn")
    arguments = ServerArgs(
        model_path=str(model), device=device, attention_backend=attention[0], mm_attention_backend=attention[1]
    )
    runtime_context.publish(arguments, role="tokenizer")
    own = QwenVLImageProcessor(AutoConfig.from_pretrained(str(model)), arguments, get_processor(str(model)), "default")
    worker_s = image_worker.processor(config(own))
    found: dict[str, Any] = {"pictures": 0, "values": 0, "largest": {}, "mean": {}}
    levels = 255 * float(max(worker_s.image_std))  # steps between two values of a pixel in 1.0
    for kind in ("JPEG", "PNG"):
        largest, total, values = 0.0, 0.0, 0
        for number in range(PICTURES // 2):
            (sample,) = held_out(1, number, SIDES, ("describe",))
            data = encoded(sample, kind)
            request = SimpleNamespace(video_data=None, audio_data=None, rid="r", mm_content_hashes=None)
            prompt = "<|vision_start|><|image_pad|><|vision_end|>"
            made = asyncio.run(own.process_mm_data_async([data], prompt, request, max_req_input_len=1 << 15))
            theirs = made.mm_items[0].feature.float().cpu()
            with Image.open(io.BytesIO(data)) as image:
                ours = worker_s(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"]
            apart = (theirs - ours).abs()
            largest, total = max(largest, float(apart.max())), total + float(apart.sum())
            values += apart.numel()
            found["pictures"] += 1
        found["largest"][kind], found["mean"][kind] = largest * levels, total / values * levels
        found["values"] += values
    return found


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.answers", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the default model's directory, with its weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True, help="the servers' logs")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--soak", type=int, default=20_000)
    parser.add_argument("--soak-s", type=float, default=240.0, help="seconds after which no more are asked")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--arena-mib", type=int, default=64)
    parser.add_argument("--cpu", action="store_true", help="try it, on SGLang's CPU build")
    parser.add_argument("--features", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    parsed.model = parsed.model.resolve()
    if parsed.features:
        print(json.dumps(features(parsed.model, "cpu" if parsed.cpu else "cuda")))
        return 0
    settings = {"COATCHECK_SGLANG_ARENA_MIB": str(parsed.arena_mib), "COATCHECK_SGLANG_POISON": "1"}
    shared = cpu(1) if parsed.cpu else base(1)
    fleet = Fleet(parsed.state)
    try:
        servers = [_started(fleet, shared, name, parsed.model, settings) for name in ("default", "whole")]
        words = [shared.python, "-W", "ignore", *sys.argv, "--features"]
        words[3:4] = ["-m", "benchmarks.gpu.answers"]
        variables = environment(shared, CONTENDERS["default"], os.environ, plugin_directory(parsed.state))
        comparing = subprocess.run(words, env=variables, stdout=subprocess.PIPE, text=True, check=False)
        compared = json.loads(comparing.stdout.splitlines()[-1]) if comparing.returncode == 0 else None
        print("features", compared, flush=True)
        _until_ready(fleet, servers)
        measured = asyncio.run(_measured(parsed, servers, {"features": compared, **vars(parsed)}))
        parsed.out.write_text(json.dumps(measured, indent=1) + "\n")
    finally:
        fleet.stop(list(fleet.servers))
    return 0


def _started(fleet: Fleet, shared: Base, name: str, model: Path, settings: dict[str, str]) -> Server:
    port = fleet.free_port(31000)
    words = command(shared, CONTENDERS[name], model, port)
    variables = environment(shared, CONTENDERS[name], os.environ, plugin_directory(fleet.directory))
    return fleet.start(name, port, words, {**variables, **(settings if name == "whole" else {})}, {})


def _until_ready(fleet: Fleet, servers: Sequence[Server]) -> None:
    deadline = time.monotonic() + START_S
    waiting = [*servers]
    while waiting := [server for server in waiting if not fleet.look(server)]:
        if time.monotonic() > deadline:
            raise TimeoutError("\n".join(server.tail() for server in servers))
        time.sleep(1)


async def _measured(parsed: argparse.Namespace, servers: Sequence[Server], about: dict[str, Any]) -> dict[str, Any]:
    urls = [server.url for server in servers]
    found: dict[str, Any] = {name: str(value) if isinstance(value, Path) else value for name, value in about.items()}
    questions = drawn(range(parsed.questions), 7, SIDES, parsed.model)
    async with httpx.AsyncClient(base_url=urls[1], timeout=ANSWER_S) as client:
        deadline = time.monotonic() + START_S
        while not _counted(urls[1], 'coatcheck_sglang_processed_total{how="whole"'):
            if time.monotonic() > deadline:
                raise TimeoutError(servers[1].tail())
            await ask(client, questions[0][0])
            await asyncio.sleep(1)
    found["tokens"] = await tokens(urls, questions)
    print("tokens", {name: value for name, value in found["tokens"].items() if name != "differ"}, flush=True)
    for name, url, count in (("soak default", urls[0], parsed.soak // 10), ("soak", urls[1], parsed.soak)):
        found[name] = await soak(url, count, parsed.clients, 8, parsed.model, parsed.soak_s)
        print(name, found[name], flush=True)
    found["counters"] = {
        name: value for name, value in counters.parse(counters.scrape(urls[1])).items() if name.startswith("coatcheck_")
    }
    found["read too late"] = sum("a block was another's before" in line for line in servers[1].text().splitlines())
    print({name: found["counters"].get(name) for name in found["counters"] if "processed" in name}, flush=True)
    return found


def _counted(url: str, start: str) -> float:
    found = counters.parse(counters.scrape(url))
    return sum(value for name, value in found.items() if name.startswith(start))


if __name__ == "__main__":
    sys.exit(main())
