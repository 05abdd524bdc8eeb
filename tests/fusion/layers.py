"""What the fusion tests share: a small model's sizes, and blocks with data in them."""

import torch

from infra_lab.fusion.block import BlockInputs, BlockShape, DecoderBlock, NormSpelling, block_inputs
from infra_lab.models.config import ModelConfig

SMALL = ModelConfig(
    architecture="llama", vocab_size=64, hidden_size=64, intermediate_size=96, num_layers=1, num_heads=4, num_kv_heads=2,
    head_dim=16, max_position=128,
)  # fmt: skip
DECODE, PREFILL = BlockShape(1, 1, 23), BlockShape(1, 24, 0)


def block_with_data(
    shape: BlockShape, *, norm: NormSpelling = "rsqrt", dtype: torch.dtype = torch.float32
) -> tuple[DecoderBlock, BlockInputs]:
    """A block with random weights, its norms too, and inputs for it, on the CPU."""
    block = DecoderBlock(SMALL, norm=norm, dtype=dtype, device="cpu")
    generator = torch.Generator().manual_seed(1)
    for name, weight in block.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.data = (1 + 0.3 * noise if "norm" in name else noise * weight.shape[-1] ** -0.5).to(dtype)
    return block, block_inputs(SMALL, shape, dtype=dtype, device="cpu")
