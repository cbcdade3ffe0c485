"""What ``auto`` measures at start, in whole and several times: ``python -m benchmarks.micro.auto_costs --ranks 2``."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time

import torch

from coatcheck.engine.model.config import DEFAULT_MODEL
from coatcheck.engine.model.positions import ModelPositions
from coatcheck.engine.model.qwen2_5_vl import load
from coatcheck.engine.ranks import auto_threshold
from coatcheck.engine.ranks.group import join
from coatcheck.engine.ranks.plan_broadcast import PlanChannel
from coatcheck.engine.strategies.materialize import Materialize
from coatcheck.pixels import PixelTable, image_processor

LIMIT_S = 240


def measure(times: int) -> None:
    """One rank; the entry rank prints."""
    device = torch.device("cpu")
    group = join(device, 60.0)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // group.size))
    model = load(DEFAULT_MODEL, torch.float32, device, group.rank, group.size, group.all_reduce)
    vision = model.config.vision_config
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    positions = ModelPositions(model.config)
    image, video = model.config.image_token_id, model.config.video_token_id
    table = PixelTable.of(image_processor(DEFAULT_MODEL))
    materialize = Materialize(positions, image, video, vision.spatial_merge_size, width, table=table)
    channel = PlanChannel(group, lambda arrivals, spent: None)
    for _ in range(times):
        if group.rank:
            auto_threshold.follow(channel, materialize)
            continue
        start = time.perf_counter()
        measured = auto_threshold.lead(channel, materialize, group.rank, handles=True)
        sizes = ", ".join(
            f"{size / 1024:.1f} KiB {measured.inside[size] * 1e3:.2f} / {measured.handle[size] * 1e3:.2f}"
            for size in measured.inside
        )
        lines = ", ".join(
            f"{carrier} {line.base_s * 1e3:.2f} ms + {line.per_byte_s * 1e9:.2f} ms/MB"
            for carrier, line in measured.materialize.items()
        )
        print(
            f"{group.size} ranks, {time.perf_counter() - start:.2f} s: inside / by handle, ms: {sizes}; materializing: "
            f"{lines}; handover {measured.handover_s * 1e3:.3f} ms; threshold {measured.inside_bytes} bytes",
            flush=True,
        )
    group.close()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(args.ranks)}
    environment.setdefault("OMP_WAIT_POLICY", "passive")  # as the launcher has it
    code = f"from benchmarks.micro.auto_costs import measure; measure({args.times})"
    ranks = [
        subprocess.Popen([sys.executable, "-c", code], env={**environment, "RANK": str(rank)})
        for rank in range(args.ranks)
    ]
    return max(process.wait(LIMIT_S) for process in ranks)


if __name__ == "__main__":
    sys.exit(main())
