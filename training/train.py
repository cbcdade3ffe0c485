"""Train the default model: ``python -m training.train --out DIR [--device cuda|cpu] [--minutes M] [--seed S]``.

Worker processes draw scenes and pack conversations; one process trains. The learning rate rises over the first 2 %
and falls on a cosine to zero at the end, by elapsed time (`--minutes`) or by steps (`--steps`, which makes a run
repeatable up to the device's rounding). Helper losses (see `training.network.Trainee`) fade out over the middle.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from training.batches import METRIC_KINDS, MIXES, Batches, Drawer
from training.checkpoint import load_model, new_model, save_model
from training.network import Trainee

HELPERS: dict[str, float] = {"token": 0.5, "grid": 0.25, "cell": 0.5}
WARM_UP = 0.02  # of the whole run


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on `device`, indices widened to int64."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return [move(item) for item in value]
        return value

    return {key: move(value) for key, value in batch.items()}


def rate(progress: float, peak: float) -> float:
    """The learning rate at `progress` (0..1) of the run."""
    if progress < WARM_UP:
        return peak * max(progress / WARM_UP, 1e-3)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP))))


def helper_weight(progress: float) -> float:
    """1 during the first 30 % of the run, then down on a line to 0.02 at 80 %."""
    return max(0.02, min(1.0, 1 - (progress - 0.3) / 0.5))


def optimizer_for(trainee: Trainee, peak: float, device: torch.device) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors and embeddings do not."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in trainee.named_parameters():
        (matrices if parameter.ndim >= 2 and "embed_tokens" not in name else rest).append(parameter)
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), eps=1e-9, fused=device.type == "cuda")


@torch.no_grad()
def exact_answers(trainee: Trainee, batches: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Per kind (right, asked): answers whose every token is the likeliest one, as greedy decoding would find."""
    right = torch.zeros(len(METRIC_KINDS), dtype=torch.long)
    asked = torch.zeros(len(METRIC_KINDS), dtype=torch.long)
    trainee.eval()
    for batch in batches:
        wrong = trainee(batch)["next"].argmax(-1) != batch["targets"]
        failed = torch.zeros(len(batch["kinds"]), dtype=torch.long, device=wrong.device)
        failed.index_add_(0, batch["answers"], wrong.long())
        kinds = batch["kinds"].cpu()
        asked += torch.bincount(kinds, minlength=len(METRIC_KINDS))
        right += torch.bincount(kinds[(failed == 0).cpu()], minlength=len(METRIC_KINDS))
    trainee.train()
    return {k: (int(right[i]), int(asked[i])) for i, k in enumerate(METRIC_KINDS)}


def report(counts: dict[str, tuple[int, int]]) -> str:
    """One line: percentages overall and per kind."""
    total = sum(r for r, _ in counts.values()), sum(n for _, n in counts.values())
    cells = [f"{kind} {100 * r / max(1, n):.1f}" for kind, (r, n) in counts.items()]
    return f"{100 * total[0] / max(1, total[1]):.2f} % of {total[1]} right: " + ", ".join(cells)


class Run:
    """One training run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        torch.set_float32_matmul_precision("high")
        # cuDNN's attention plans each new shape anew, for longer than the step takes.
        torch.backends.cuda.enable_cudnn_sdp(False)
        model = load_model(args.start) if args.start is not None else new_model(args.seed)
        self.trainee = Trainee(model).to(self.device).train()
        self.optimizer = optimizer_for(self.trainee, args.rate, self.device)
        validation = Drawer(7, min(args.tokens, 32768), "validation")
        self.validation = [to_device(validation.batch(k), self.device) for k in range(args.validation)]
        self.step, self.questions, self.images = 0, 0, 0
        self.began = time.monotonic()

    def batches(self) -> Generator[dict[str, Any], None, None]:
        """Drawn batches on the device."""
        workers = self.args.workers
        loader: DataLoader[dict[str, Any]] = DataLoader(
            Batches(self.args.seed, self.args.tokens, self.args.mix),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context="spawn" if workers else None,
        )
        for batch in loader:
            yield to_device(batch, self.device)

    def progress(self) -> float:
        """0 at the start, 1 at the end."""
        if self.args.steps:
            return self.step / float(self.args.steps)
        return float((time.monotonic() - self.began) / (60.0 * self.args.minutes))

    def one_step(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Forward, backward, update; the losses, in nats."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate(progress, self.args.rate)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            out = self.trainee(batch)
        losses = self.trainee.losses(out, batch)
        weight = self.args.helpers * helper_weight(progress)
        total = losses["next"] + weight * sum(HELPERS[k] * losses[k] for k in HELPERS if k in losses)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        torch.nn.utils.clip_grad_norm_(self.trainee.parameters(), 1.0)
        self.optimizer.step()
        return losses

    def save(self) -> None:
        """Write the directory as it stands."""
        minutes = (time.monotonic() - self.began) / 60
        about = {
            "seed": self.args.seed,
            "started_from": json.loads((self.args.start / "training.json").read_text()) if self.args.start else None,
            "steps": self.step,
            "minutes": round(minutes, 2),
            "images": self.images,
            "questions": self.questions,
            "mix": self.args.mix,
            "tokens_per_batch": self.args.tokens,
            "peak_learning_rate": self.args.rate,
            "parameters": sum(p.numel() for p in self.trainee.model.parameters()),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
        }
        save_model(self.trainee.model, Path(self.args.out), about)

    def train(self) -> None:
        """Run to the end, with a line every few seconds and a checkpoint now and then."""
        feed = self.batches()
        batch = next(feed)
        self.began = said = saved = time.monotonic()
        waited = 0.0
        while (progress := self.progress()) < 1:
            losses = self.one_step(batch, progress)
            self.step += 1
            self.questions += len(batch["kinds"])
            self.images += len(batch["images"]) * len(batch["ids"])
            before = time.monotonic()
            batch = next(feed)
            now = time.monotonic()
            waited += now - before
            if now - said > self.args.report:
                values = ", ".join(f"{k} {v.item():.4f}" for k, v in losses.items())
                elapsed = now - self.began
                print(
                    f"{elapsed:6.0f} s  step {self.step}  {1000 * elapsed / self.step:.1f} ms/step  "
                    f"waited {waited:.1f} s  {values}  lr {rate(progress, self.args.rate):.2e}",
                    flush=True,
                )
                said = time.monotonic()
            if now - saved > self.args.checkpoint:
                print("  " + report(exact_answers(self.trainee, self.validation)), flush=True)
                self.save()
                saved = time.monotonic()
        feed.close()
        self.save()
        print(
            f"done: {self.step} steps, {self.questions} questions about {self.images} images, "
            f"{(time.monotonic() - self.began) / 60:.1f} minutes\n  "
            + report(exact_answers(self.trainee, self.validation)),
            flush=True,
        )


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="length of the run")
    parser.add_argument("--steps", type=int, default=0, help="length of the run in steps, instead of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="go on from the weights in this directory")
    parser.add_argument("--mix", choices=list(MIXES), default="even", help="how often each kind is asked")
    parser.add_argument("--helpers", type=float, default=1.0, help="weight of the helper losses at the start")
    parser.add_argument("--tokens", type=int, default=40960, help="tokens a batch, about")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--workers", type=int, default=14, help="drawing processes; 0 draws in this one")
    parser.add_argument("--validation", type=int, default=8, help="validation batches")
    parser.add_argument("--report", type=float, default=10.0, help="seconds between lines")
    parser.add_argument("--checkpoint", type=float, default=60.0, help="seconds between checkpoints")
    Run(parser.parse_args()).train()


if __name__ == "__main__":
    main()
