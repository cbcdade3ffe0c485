"""The core without the engine: a program of its own runs intake and arena alone."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from coatcheck.engine.http.config import FrontendConfig
from coatcheck.engine.http.front_end import HANDLER as CHAT
from coatcheck.errors import BadRequest, PayloadTooLarge
from coatcheck.intake.config import PoolConfig
from coatcheck.intake.media.handler import HANDLER as MEDIA
from coatcheck.intake.media.handler import MediaConfig
from coatcheck.intake.pool import WorkerPool
from coatcheck.pixels import PixelTable, image_processor
from coatcheck.wire import to_argument
from tests.support.front_end import encoded
from tests.support.toy_program import READERS, ToyProgram

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]  # workers import torch and transformers, on shared cores

PICTURES = [encoded(Image.effect_noise((90 + 30 * at, 120), 60).convert("RGB")) for at in range(6)]


async def test_encoded_images_become_pixels_on_every_reader_and_every_block_comes_back(model_dir: Path) -> None:
    processor = image_processor(model_dir)
    table = PixelTable.of(processor)
    async with ToyProgram(model_dir, 1 << 20, PoolConfig(workers=1)) as program:
        answers = await asyncio.gather(*(program.read(f"request {at}", *PICTURES[at:]) for at in range(len(PICTURES))))
        for at, (items, seen) in enumerate(answers):
            assert len(items) == len(PICTURES) - at
            assert [len(pixels) for pixels in seen] == [len(items)] * READERS
            for number, item in enumerate(items):
                with Image.open(io.BytesIO(PICTURES[at + number])) as image:
                    expected = processor(images=[image.convert("RGB")], return_tensors="np")["pixel_values"]
                for reader in seen:
                    compact = torch.from_numpy(reader[number])
                    np.testing.assert_array_equal(table.widen(compact).numpy(), expected)
                assert item.digest == answers[0][0][at + number].digest
        statistics = program.arena.statistics()
        assert (statistics.reserved, statistics.in_use, statistics.quarantined) == (0, 0, 0)
        assert statistics.hits > 0, "equal pictures were decoded again"


async def test_its_errors_name_no_transport(model_dir: Path) -> None:
    async with ToyProgram(model_dir, 64 << 10, PoolConfig(workers=1)) as program:
        with pytest.raises(BadRequest) as refused:
            await program.read("a", PICTURES[0], b"no picture")
        assert (refused.value.param, refused.value.code) == ("image 1", "invalid_image")
        with pytest.raises(PayloadTooLarge):
            await program.read("b", encoded(Image.new("RGB", (500, 500))))
        statistics = program.arena.statistics()
        assert (statistics.reserved, statistics.in_use, statistics.quarantined) == (0, 0, 0)


async def test_workers_are_forked_from_a_process_of_one_thread(model_dir: Path) -> None:
    arguments = {
        MEDIA: to_argument(MediaConfig(str(model_dir))),
        CHAT: to_argument(FrontendConfig(model_dir=model_dir, model_name="m")),
    }
    for handler, config in arguments.items():
        pool = WorkerPool(PoolConfig(workers=2), handler, config)
        await pool.start()
        try:
            await pool.ready(50)
            parents = {psutil.Process(pid).parent() for pid in pool.pids()}
            assert [parent.num_threads() for parent in parents if parent is not None] == [1], handler
        finally:
            await pool.close()
