"""A batched forward pass over the modules of a transformers Qwen2.5-VL, for training.

The library's own forward loops over images and windows; a training batch has images of one size each slot, so one
call per window shape does. Same weights, same mathematics (a test compares both); only the layout differs.
Shapes: B rows, L tokens a row, N patches and M = N / 4 merged tokens an image, D hidden size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model_config import MEAN, MERGE, PATCH, ROPE, ROPE_THETA, STD, TEXT, TOKEN_SIDE, VISION
from training.scenes import COLORS, PLACES, SHAPES

# Longest side of an image in merged tokens (1036 pixels), and so the number of row or column classes.
MAX_GRID = 37


def patchify(images: Tensor) -> Tensor:
    """uint8 images (B, H, W, 3) -> normalised patches (B, N, 3 * 14 * 14), in the image processor's order.

    The processor repeats each patch for the second frame; here the two frames' weights are added instead.
    """
    b, height, width, _ = images.shape
    mean = torch.tensor(MEAN, device=images.device)
    std = torch.tensor(STD, device=images.device)
    x = (images.float() / 255 - mean) / std
    grid_h, grid_w = height // TOKEN_SIDE, width // TOKEN_SIDE
    x = x.view(b, grid_h, MERGE, PATCH, grid_w, MERGE, PATCH, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    return x.reshape(b, grid_h * grid_w * MERGE * MERGE, 3 * PATCH * PATCH)


@lru_cache(maxsize=64)
def _windows(grid_h: int, grid_w: int, device: torch.device) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Merged tokens in window order (M,), the inverse order (M,), and each window's length in merged tokens."""
    side = VISION["window_size"] // TOKEN_SIDE
    index = torch.arange(grid_h * grid_w).view(grid_h, grid_w)
    parts = [
        index[top : top + side, left : left + side].reshape(-1)
        for top in range(0, grid_h, side)
        for left in range(0, grid_w, side)
    ]
    order = torch.cat(parts)
    return order.to(device), torch.argsort(order).to(device), tuple(len(part) for part in parts)


@lru_cache(maxsize=64)
def _vision_rotation(grid_h: int, grid_w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine (N, head_dim) of the patches of a grid of merged tokens, in the processor's order."""
    rows, columns = torch.meshgrid(torch.arange(grid_h * MERGE), torch.arange(grid_w * MERGE), indexing="ij")
    shape = (grid_h, MERGE, grid_w, MERGE)
    rows = rows.reshape(shape).transpose(1, 2).flatten().float()
    columns = columns.reshape(shape).transpose(1, 2).flatten().float()
    half = VISION["hidden_size"] // VISION["num_heads"] // 2
    inverse = 1.0 / (10000.0 ** (torch.arange(0, half, 2, dtype=torch.float) / half))
    angles = torch.cat([rows[:, None] * inverse, columns[:, None] * inverse], dim=-1)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(device), angles.sin().to(device)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (..., head_dim), computed in float32 and returned in the type of `x`."""
    one, two = x.float().chunk(2, dim=-1)
    half = cos.shape[-1] // 2
    c, s = cos[..., :half], sin[..., :half]
    return torch.cat((one * c - two * s, two * c + one * s), dim=-1).to(x.dtype)


def _norm(module: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), module.weight.to(x.dtype), module.variance_epsilon)


def encode_images(visual: Any, images: Tensor) -> Tensor:
    """uint8 images (B, H, W, 3), sides multiples of 28 pixels -> merged tokens (B, M, D) in reading order."""
    b, grid_h, grid_w = len(images), images.shape[1] // TOKEN_SIDE, images.shape[2] // TOKEN_SIDE
    order, inverse, lengths = _windows(grid_h, grid_w, images.device)
    unit = MERGE * MERGE
    patches = patchify(images)
    patches = patches.view(b, -1, unit, patches.shape[-1])[:, order].flatten(1, 2)
    weight = visual.patch_embed.proj.weight.sum(dim=2).flatten(1)
    x = F.linear(patches, weight)
    cos, sin = (
        t.view(-1, unit, t.shape[-1])[order].flatten(0, 1)[:, None]
        for t in _vision_rotation(grid_h, grid_w, images.device)
    )
    heads = VISION["num_heads"]
    for block in visual.blocks:
        qkv = block.attn.qkv(_norm(block.norm1, x)).view(b, x.shape[1], 3, heads, -1)
        q, k = _rotate(qkv[:, :, 0], cos, sin), _rotate(qkv[:, :, 1], cos, sin)
        v = qkv[:, :, 2]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        parts, start = [], 0
        for length in lengths:
            piece = slice(start * unit, (start + length) * unit)
            parts.append(F.scaled_dot_product_attention(q[:, :, piece], k[:, :, piece], v[:, :, piece]))
            start += length
        mixed = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        x = x + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(_norm(block.norm2, x))
    merged = _norm(visual.merger.ln_q, x).reshape(b, grid_h * grid_w, -1)
    out: Tensor = visual.merger.mlp(merged)[:, inverse]
    return out


def _text_rotation(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (B, 3, L): time, row, column -> cosine and sine (B, 1, L, head_dim)."""
    head_dim = TEXT["hidden_size"] // TEXT["num_attention_heads"]
    steps = torch.arange(0, head_dim, 2, dtype=torch.float, device=positions.device)
    inverse = 1.0 / (ROPE_THETA ** (steps / head_dim))
    angles = positions.float()[..., None] * inverse
    sections = angles.split(ROPE["mrope_section"], dim=-1)
    chosen = torch.cat([section[:, axis] for axis, section in enumerate(sections)], dim=-1)
    chosen = torch.cat([chosen, chosen], dim=-1)[:, None]
    return chosen.cos(), chosen.sin()


def attention_bias(segments: Tensor, sees_prefix: Tensor, dtype: torch.dtype) -> Tensor:
    """Segments (B, L): 0 prefix, 1.. conversations, -1 padding; sees_prefix (B, L) bool -> bias (B, 1, L, L).

    A token sees what precedes it in its own segment, and the prefix unless it belongs to a text-only conversation.
    """
    length = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    prefix = (segments[:, None, :] == 0) & sees_prefix[:, :, None]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    allowed = (same | prefix) & causal
    bias = torch.zeros(allowed.shape, dtype=dtype, device=segments.device)
    return bias.masked_fill_(~allowed, float("-inf"))[:, None]


class Trainee(nn.Module):
    """The model plus heads that exist during training only.

    The heads ask, beside the next token: which colour and shape covers each image token (of the vision tower's
    output), which row and column the token has (after the second layer), and what lies in each of the nine cells
    (at the token that ends the image, after the third layer).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        hidden = TEXT["hidden_size"]
        self.kinds = len(COLORS) + 1, len(SHAPES) + 1
        self.token_head = nn.Linear(hidden, sum(self.kinds))
        self.grid_head = nn.Linear(hidden, 2 * MAX_GRID)
        self.cell_head = nn.Linear(hidden, len(PLACES) * sum(self.kinds))

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Logits of the tokens to predict (T, vocabulary), and of the heads (see `losses`)."""
        core = self.model.model
        text = core.language_model
        x = text.embed_tokens(batch["ids"])
        features = []
        for images, start in zip(batch["images"], batch["starts"], strict=True):
            seen = encode_images(core.visual, images)
            features.append(seen)
            x = torch.cat([x[:, :start], seen.to(x.dtype), x[:, start + seen.shape[1] :]], dim=1)
        cos, sin = _text_rotation(batch["positions"])
        work = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        bias = attention_bias(batch["segments"], batch["sees_prefix"], work)
        b, length, _ = x.shape
        heads = TEXT["num_attention_heads"]
        after = []
        for layer in text.layers:
            attention = layer.self_attn
            h = _norm(layer.input_layernorm, x)
            q, k, v = (
                project(h).view(b, length, heads, -1).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            x = x + attention.o_proj(mixed.transpose(1, 2).flatten(2))
            x = x + layer.mlp(_norm(layer.post_attention_layernorm, x))
            after.append(x)
        where = batch["where"]
        final = _norm(text.norm, x.flatten(0, 1)[where])
        out = {"next": self.model.lm_head(final)}
        if features:
            out["token"] = self.token_head(torch.cat(features, dim=1))
            spans = [after[1][:, s : s + f.shape[1]] for s, f in zip(batch["starts"], features, strict=True)]
            out["grid"] = self.grid_head(torch.cat(spans, dim=1))
            ends = [s + f.shape[1] for s, f in zip(batch["starts"], features, strict=True)]
            cells = self.cell_head(after[2][:, ends])
            out["cell"] = cells.view(b, len(ends), len(PLACES), sum(self.kinds))
        return out

    def losses(self, out: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Mean cross entropies in nats: ``next`` (answers), and the helpers ``token``, ``grid``, ``cell``."""
        result = {"next": F.cross_entropy(out["next"].float(), batch["targets"])}
        if "token" in out:
            color, shape = self.kinds
            for name in ("token", "cell"):
                logits = out[name].float()
                labels = batch[name]
                result[name] = F.cross_entropy(
                    logits[..., :color].reshape(-1, color), labels[..., 0].flatten()
                ) + F.cross_entropy(logits[..., color:].reshape(-1, shape), labels[..., 1].flatten())
            grid = out["grid"].float()
            labels = batch["grid"].expand(len(grid), -1, -1)
            result["grid"] = F.cross_entropy(
                grid[..., :MAX_GRID].reshape(-1, MAX_GRID), labels[..., 0].flatten()
            ) + F.cross_entropy(grid[..., MAX_GRID:].reshape(-1, MAX_GRID), labels[..., 1].flatten())
        return result
