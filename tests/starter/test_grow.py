"""A UNet with one more outer level begins with what a smaller one has learned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel

from lorasmith.starter.build.grow import grow


def _unet(widths: tuple[int, ...], seed: int) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    plain, cross = len(widths) - 2, 2
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=widths,
        norm_num_groups=4, attention_head_dim=2, cross_attention_dim=8,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * cross,
        up_block_types=("CrossAttnUpBlock2D",) * cross + ("UpBlock2D",) * plain,
    )  # fmt: skip


def test_the_inner_levels_go_on() -> None:
    old, new = _unet((16, 24, 32), 0), _unet((8, 16, 24, 32), 1)
    left = grow(new, old)
    assert all(
        name.startswith(("conv_", "down_blocks.0.", "down_blocks.1.", "up_blocks.2", "up_blocks.3")) for name in left
    )
    torch.manual_seed(2)
    hidden, words, t = torch.randn(2, 32, 4, 4), torch.randn(2, 5, 8), torch.tensor([10, 700])
    with torch.no_grad():
        seen = [m.time_embedding(m.time_proj(t)) for m in (old, new)]
        a, b = (m.mid_block(hidden, e, encoder_hidden_states=words) for m, e in zip((old, new), seen))
        c, d = (m.down_blocks[i](torch.ones(2, 16, 8, 8), e, encoder_hidden_states=words)[0]
                for m, i, e in zip((old, new), (1, 2), seen))  # fmt: skip
    assert F.mse_loss(a, b) < 2e-2 * a.var()
    assert F.mse_loss(c, d) < 2e-2 * c.var()
