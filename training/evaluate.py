"""Measure the model on held-out scenes: ``python -m training.evaluate [--model DIR] [--questions N] [--seed S]``.

`held_out` yields the questions, a `Backend` answers them (one string each, in order), `evaluate` counts. The backend
here is transformers' greedy `generate()` with the real image processor; any other, such as a client of a running
server, is a function from a list of samples to a list of answers.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from training.checkpoint import load_model
from training.questions import KINDS, NO_IMAGE, Question, ask, ask_about_many, ask_any, chat
from training.scenes import MAX_SIDE, MIN_SIDE, make_scene, random_size

DEFAULT_MODEL = Path(__file__).parents[1] / "default_model" / "coatcheck_default_model"
# Groups of the longer side, in pixels: (lowest, highest).
BUCKETS: tuple[tuple[int, int], ...] = ((112, 195), (196, 279), (280, 363), (364, 448))
LARGE_BUCKETS: tuple[tuple[int, int], ...] = ((560, 760), (761, 1024))
FORMS: tuple[str, ...] = ("single", "two-images", "text-first", "system", "second-turn", "chat")


@dataclass(frozen=True, slots=True)
class Sample:
    """A question to put to a model: images, what was said before (question, answer), and the right answer."""

    images: tuple[Image.Image, ...]
    question: str
    answer: str
    kind: str
    group: str
    history: tuple[tuple[str, str], ...] = ()
    system: str | None = None
    text_first: bool = False

    def messages(self) -> list[dict[str, Any]]:
        """Chat messages; images stand as ``{"type": "image"}`` in the first user message, in order."""
        messages: list[dict[str, Any]] = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system})
        images: list[dict[str, str]] = [{"type": "image"} for _ in self.images]
        for question, answer in (*self.history, (self.question, "")):
            text = [{"type": "text", "text": question}]
            messages.append({"role": "user", "content": text + images if self.text_first else images + text})
            images = []
            if answer:
                messages.append({"role": "assistant", "content": answer})
        return messages


Backend = Callable[[Sequence[Sample]], list[str]]


def held_out(
    n: int, seed: int, buckets: Sequence[tuple[int, int]] = BUCKETS, kinds: Sequence[str] = KINDS
) -> Iterator[Sample]:
    """`n` held-out questions, one a scene, cycling through kinds and size buckets; the same for the same seed."""
    for k in range(n):
        yield _sample(k, seed, kinds[k % len(kinds)], buckets[(k // len(kinds)) % len(buckets)])


def _sample(k: int, seed: int, kind: str, bucket: tuple[int, int]) -> Sample:
    rng = random.Random(f"coatcheck held-out {seed} {k}")
    size = random_size(rng, MIN_SIDE, MAX_SIDE)
    while not bucket[0] <= max(size) <= bucket[1]:
        size = random_size(rng, max(MIN_SIDE, bucket[0] // 2), bucket[1])
    for attempt in range(1000):
        scene = make_scene((seed * 1_000_000 + k) * 1000 + attempt, size, split="held-out")
        question = ask(scene, rng, kind)
        if question is not None:
            return Sample((scene.image,), question.text, question.answer, kind, f"{bucket[0]}-{bucket[1]}")
    raise RuntimeError(f"no scene allows a question of kind {kind!r}")


def held_out_form(form: str, n: int, seed: int) -> Iterator[Sample]:
    """`n` held-out questions put in another form (see `FORMS`) than one image with one question."""
    weights = dict.fromkeys(KINDS, 1.0)
    for k in range(n):
        rng = random.Random(f"coatcheck held-out {form} {seed} {k}")
        count = 2 if form == "two-images" else 1
        single = form == "two-images" and rng.random() < 0.4
        scenes = [
            make_scene(
                (seed * 1_000_000 + k) * 1000 + i,
                random_size(rng, MIN_SIDE, 336),
                split="held-out",
                count=1 if single else None,
            )
            for i in range(count)
        ]
        images = tuple(scene.image for scene in scenes)
        question = ask_about_many(scenes, rng, weights) if count > 1 else ask_any(scenes[0], rng, weights)
        history: tuple[tuple[str, str], ...] = ()
        if form == "second-turn":
            earlier = ask_any(scenes[0], rng, weights)
            history = ((earlier.text, earlier.answer),)
        if form == "chat":
            images, question = (), chat(rng, Question(question.text, NO_IMAGE, "chat"))
        system = "You are a helpful assistant." if form == "system" else None
        yield Sample(images, question.text, question.answer, question.kind, form, history, system, form == "text-first")


def load_processor(directory: Path) -> tuple[Any, Any]:
    """The tokenizer and the Pillow-based image processor of a model directory."""
    import transformers

    # transformers 4 has no class of this name: its plain one works on Pillow.
    name = "Qwen2VLImageProcessorPil" if hasattr(transformers, "Qwen2VLImageProcessorPil") else "Qwen2VLImageProcessor"
    processor = getattr(transformers, name)
    return transformers.AutoTokenizer.from_pretrained(directory), processor.from_pretrained(directory)


class Generator:
    """The transformers backend: greedy `generate()` in float32, in batches padded on the left."""

    def __init__(self, directory: Path, device: str = "cpu", batch: int = 16) -> None:
        self.tokenizer, self.processor = load_processor(directory)
        self.model = load_model(directory).to(device).eval()
        self.device, self.batch = device, batch

    def prompt(self, sample: Sample) -> tuple[list[int], dict[str, Any]]:
        """Token ids with image placeholders expanded, and the image inputs."""
        text = self.tokenizer.apply_chat_template(sample.messages(), tokenize=False, add_generation_prompt=True)
        pixels: dict[str, Any] = {}
        if sample.images:
            pixels = dict(self.processor(images=list(sample.images), return_tensors="pt"))
            parts = text.split("<|image_pad|>")
            counts = (pixels["image_grid_thw"].prod(-1) // self.processor.merge_size**2).tolist()
            text = parts[0] + "".join("<|image_pad|>" * c + p for c, p in zip(counts, parts[1:], strict=True))
        return self.tokenizer(text)["input_ids"], pixels

    @torch.no_grad()
    def _answer(self, prompts: list[tuple[list[int], dict[str, Any]]]) -> list[str]:
        longest = max(len(ids) for ids, _ in prompts)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p, _ in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p, _ in prompts])
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        images = [pixels for _, pixels in prompts if pixels]
        if images:
            inputs["mm_token_type_ids"] = (ids == self.model.config.image_token_id).int()
            for key in ("pixel_values", "image_grid_thw"):
                inputs[key] = torch.cat([pixels[key] for pixels in images])
        inputs = {key: value.to(self.device) for key, value in inputs.items()}
        out = self.model.generate(**inputs, max_new_tokens=100, do_sample=False)
        texts: list[str] = self.tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
        return texts

    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        """Answers in the order of `samples`; prompts of like kind and length are answered together."""
        prompts = [self.prompt(sample) for sample in samples]
        order = sorted(
            range(len(samples)),
            key=lambda k: (bool(samples[k].images), len(samples[k].answer) // 24, len(prompts[k][0])),
        )
        answers = [""] * len(samples)
        batches: list[list[int]] = []
        for k in order:
            fits = batches and len(batches[-1]) < self.batch and len(prompts[k][0]) * len(batches[-1]) < 8192
            if fits and bool(samples[k].images) == bool(samples[batches[-1][0]].images):
                batches[-1].append(k)
            else:
                batches.append([k])
        for chosen in batches:
            for k, answer in zip(chosen, self._answer([prompts[k] for k in chosen]), strict=True):
                answers[k] = answer
        return answers


def evaluate(samples: Iterable[Sample], backend: Backend, chunk: int = 512) -> dict[str, Any]:
    """Counts [right, asked] overall, per kind and per group, and up to 40 wrong answers."""
    counts: dict[str, dict[str, list[int]]] = {"overall": {}, "kind": {}, "group": {}}
    wrong: list[dict[str, str]] = []
    waiting: list[Sample] = []

    def settle() -> None:
        for sample, answer in zip(waiting, backend(waiting), strict=True):
            right = answer.strip() == sample.answer
            for table, key in (("overall", "all"), ("kind", sample.kind), ("group", sample.group)):
                cell = counts[table].setdefault(key, [0, 0])
                cell[0] += right
                cell[1] += 1
            if not right and len(wrong) < 40:
                wrong.append(
                    {"question": sample.question, "right": sample.answer, "got": answer, "group": sample.group}
                )
        waiting.clear()

    for sample in samples:
        waiting.append(sample)
        if len(waiting) >= chunk:
            settle()
    if waiting:
        settle()
    return {**counts, "wrong": wrong}


def table(result: dict[str, Any]) -> str:
    """The counts as text."""
    lines = []
    for name in ("overall", "kind", "group"):
        for key, (right, asked) in sorted(result[name].items()):
            lines.append(f"{name:8} {key:14} {right:6} / {asked:<6} {100 * right / asked:7.2f} %")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, evaluate, print."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--large", type=int, default=0, help="questions about images of 560 to 1024 pixels")
    parser.add_argument("--forms", type=int, default=0, help="questions in each of the other forms")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", type=Path, help="file for the counts and wrong answers")
    args = parser.parse_args()
    backend = Generator(args.model, args.device, args.batch)
    results = {}
    for name, samples in {
        "held-out": held_out(args.questions, args.seed),
        "large": held_out(args.large, args.seed, LARGE_BUCKETS),
        **{form: held_out_form(form, args.forms, args.seed) for form in FORMS[1:]},
    }.items():
        began = time.monotonic()
        result = evaluate(samples, backend)
        if not result["overall"]:
            continue
        results[name] = result
        print(f"{name} (seed {args.seed}, {time.monotonic() - began:.0f} s)\n{table(result)}", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
