"""One linear layer of several: their outputs next to each other."""

from collections.abc import Sequence

import torch

from infra_lab.quantization.linear import Linear


class JoinedLinear:
    """Output channels that are stored in different ways: y = [x · W₁ᵀ, x · W₂ᵀ, …] + bias."""

    def __init__(self, parts: Sequence[Linear], bias: torch.Tensor | None = None) -> None:
        self.parts = list(parts)
        self.bias = bias
        self.weight_bytes = sum(part.weight_bytes for part in parts)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [T, in] to [T, out], out being the sum of the parts'."""
        y = torch.cat([part(x) for part in self.parts], dim=1)
        return y if self.bias is None else y.add_(self.bias)
