"""Starts a UNet with one more outer level from a trained one of the levels inside it.

The starter's first UNet worked on 16x16 latents of factor 8. What it had learned of shapes and words sits in its inner
levels and its text encoder; those go on, and only the outermost level is new. Two things do not fit and are carried
over approximately: the time embedding is half as wide (so a small one is fitted to say the same of all 1,000
timesteps), and the outer up block sees a narrower skip.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

STEPS = 1000  # of noise


@torch.no_grad()
def grow(new: UNet2DConditionModel, old: UNet2DConditionModel) -> list[str]:
    """Fill the inner levels of ``new`` from ``old``, which lacks its outermost level.

    Returns:
        the names of the parameters that are still new: those of the outer level.
    """
    readout = _fit_time(new, old)
    source, target = old.state_dict(), new.state_dict()
    filled = {name for name in target if name.startswith("time_embedding")}
    for name, value in source.items():
        home = _renamed(name)
        if home is None or home not in target:
            continue
        wanted = target[home]
        if "time_emb_proj.weight" in name:
            value = value @ readout
        if value.shape != wanted.shape:
            value = _narrowed(value, wanted)
        wanted.copy_(value)
        filled.add(home)
    return [name for name in target if name not in filled]


def _renamed(name: str) -> str | None:
    """Return where a parameter of the smaller UNet goes in the larger one; None for its two ends."""
    if name.startswith(("conv_in", "conv_out", "conv_norm_out", "time_embedding")):
        return None
    if name.startswith("down_blocks."):
        _, level, rest = name.split(".", 2)
        return f"down_blocks.{int(level) + 1}.{rest}"
    return name  # the mid block, and the up blocks, which are counted from the inside


def _narrowed(value: Tensor, wanted: Tensor) -> Tensor:
    """Return what fits of a weight whose input got narrower: the first channels; what is left over stays as it is."""
    out = wanted.clone()
    window = tuple(slice(0, min(a, b)) for a, b in zip(value.shape, wanted.shape))
    out[window] = value[window]
    return out


@torch.enable_grad()
def _fit_time(new: UNet2DConditionModel, old: UNet2DConditionModel) -> Tensor:
    """Train ``new``'s time embedding so that a linear map of it is ``old``'s, and return that map, (old, new)."""
    t = torch.arange(STEPS)
    with torch.no_grad():
        goal = F.silu(old.time_embedding(old.time_proj(t)))
    x = new.time_proj(t)
    readout = nn.Parameter(torch.zeros(goal.shape[1], new.time_embedding.linear_2.out_features))
    trained = [*new.time_embedding.parameters(), readout]
    optimizer = torch.optim.Adam(trained, lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=4000)
    for _ in range(4000):
        loss = F.mse_loss(F.silu(new.time_embedding(x)) @ readout.T, goal)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return readout.detach()
