"""Random weights for a given configuration: real sizes and real speed without a download."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

from infra_lab.models.config import ModelConfig
from infra_lab.models.weights_shapes import expected_shapes

_CHUNK_ELEMENTS = 1 << 15
"""Small enough that torch copies it without waking its other threads (the generator runs in one in any case)."""


class DummyCheckpoint:
    """Implements `weights.Checkpoint` with normal values that depend on seed, tensor name and shape only.

    They are scaled so that activations keep unit size through any depth: a matrix by 1/√(its inputs), and the two that
    write to the residual stream by 1/√(2 · layers) besides (GPT-2, Radford 2019). Norms are 1, biases small.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0, path: Path | None = None) -> None:
        self.config, self.seed = config, seed
        self.path = path if path is not None else Path("dummy")
        self._shapes = expected_shapes(config)

    @property
    def num_bytes(self) -> int:
        """Bytes that the weights would take in the dtype they were published in."""
        dtype = getattr(torch, self.config.torch_dtype, torch.bfloat16)
        return self.config.num_parameters * int(dtype.itemsize)

    def tensor_names(self) -> list[str]:
        """Return the names that `tensors` yields, in its order."""
        return list(self._shapes)

    def tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, new CPU tensor of `dtype`); the values are the same in every dtype, but for rounding."""
        for name in self._shapes:
            yield name, self._make(name, dtype)

    def _make(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        shape = self._shapes[name]
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=dtype)
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        tensor = torch.empty(shape, dtype=dtype)
        flat = tensor.view(-1)
        buffer = torch.empty(min(_CHUNK_ELEMENTS, flat.numel()))
        for start in range(0, flat.numel(), _CHUNK_ELEMENTS):
            piece = buffer[: min(_CHUNK_ELEMENTS, flat.numel() - start)]
            flat[start : start + piece.numel()] = piece.normal_(0.0, self._scale(name, shape), generator=generator)
        return tensor

    def _scale(self, name: str, shape: tuple[int, ...]) -> float:
        if len(shape) == 1:
            return 0.02
        depth = 2 * self.config.num_layers if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
        return float((shape[1] * depth) ** -0.5)
