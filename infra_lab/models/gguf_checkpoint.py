"""A GGUF file as a checkpoint: Hugging Face names and row order, floating-point tensors, one at a time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from infra_lab.errors import CorruptModelError, UnsupportedModelError
from infra_lab.models.config import ModelConfig, RopeScaling
from infra_lab.models.gguf_blocks import INTEGER_TYPES, grouped_from_blocks
from infra_lab.models.gguf_config import Metadata, check_architecture, config_from_gguf
from infra_lab.models.gguf_dequantize import SUPPORTED_TYPES, dequantize_into, one_thread
from infra_lab.models.gguf_file import GGUFFile, GGUFTensorInfo
from infra_lab.models.gguf_names import hf_name, source_rows
from infra_lab.models.gguf_rope import ROPE_DIVISORS, rope_scaling_from_divisors, rope_scaling_from_keys
from infra_lab.models.weights_shapes import check_shapes
from infra_lab.quantization.grouped import GroupedInt

_PUBLISHED_DTYPES = {"F32": "float32", "F16": "float16"}


class GGUFCheckpoint:
    """Implements `weights.Checkpoint` for a GGUF file. Everything but the values is checked at construction.

    Raises what GGUFFile raises; CorruptModelError for missing, unknown or misshapen tensors and impossible sizes;
    UnsupportedModelError for another architecture, RoPE scaling or quantization type.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.file = GGUFFile(self.path)
        meta = Metadata(self.file.metadata, self.path)
        check_architecture(meta)
        self._tensors: dict[str, GGUFTensorInfo] = {}
        divisors: GGUFTensorInfo | None = None
        for info in self.file.tensors:
            self._check_type(info)
            if info.name == ROPE_DIVISORS:
                divisors = info
            elif name := hf_name(info.name):
                self._tensors[name] = info
            else:
                raise UnsupportedModelError(
                    f"{self.path}: tensor {info.name!r} is none of a {meta.architecture} model's that the engine knows"
                )
        embedding = self._tensors.get("model.embed_tokens.weight")
        dtype = _PUBLISHED_DTYPES.get(embedding.type.name, "bfloat16") if embedding else "bfloat16"
        config = config_from_gguf(meta, self._tensors, dtype)
        self.config: ModelConfig = replace(config, rope_scaling=self._rope_scaling(config, meta, divisors))
        check_shapes(self.config, {name: info.shape for name, info in self._tensors.items()}, self.path)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors as the file packs them."""
        return sum(info.num_bytes for info in self._tensors.values())

    def tensor_names(self) -> list[str]:
        """Return the names that `tensors` yields, in its order."""
        return list(self._tensors)

    def tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, new CPU tensor of `dtype`) in file order; of the file itself nothing stays resident."""
        for name in self._tensors:
            yield name, self._tensor(name, dtype)

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor | GroupedInt]]:
        """Yield what `tensors` yields, but matrices of INTEGER_TYPES as their codes, scales and zero points, unrounded."""
        for name, info in self._tensors.items():
            if len(info.shape) < 2 or info.type.name not in INTEGER_TYPES:
                yield name, self._tensor(name, dtype)
                continue
            with one_thread():
                weight = grouped_from_blocks(self.file.packed(info), info.type.name, source_rows(name, self.config))
            self.file.release(info)
            yield name, weight

    def _tensor(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        info, rows = self._tensors[name], source_rows(name, self.config)
        tensor = torch.empty(info.shape, dtype=dtype)
        if tensor.dim() == 1:  # norms and biases
            values = self._values(info)
            tensor.copy_(values if rows is None else values[rows])
        else:
            dequantize_into(tensor, self.file.packed(info), info.type.name, rows)
        self.file.release(info)
        return tensor

    def _check_type(self, info: GGUFTensorInfo) -> None:
        if info.type.name not in SUPPORTED_TYPES:
            raise UnsupportedModelError(
                f"{self.path}: tensor {info.name!r} has the quantization type {info.type.name}; the engine reads "
                f"{', '.join(SUPPORTED_TYPES)}; fetch the model in one of these"
            )

    def _rope_scaling(self, config: ModelConfig, meta: Metadata, divisors: GGUFTensorInfo | None) -> RopeScaling | None:
        if divisors is None:
            return rope_scaling_from_keys(meta, config.max_position)
        if divisors.shape != (config.head_dim // 2,):
            raise CorruptModelError(
                f"{self.path}: tensor {divisors.name!r} has shape {list(divisors.shape)}, expected "
                f"[{config.head_dim // 2}], one divisor a plane; fetch the model again"
            )
        return rope_scaling_from_divisors(self._values(divisors), config, meta)

    def _values(self, info: GGUFTensorInfo) -> torch.Tensor:
        """Return a one-dimensional tensor, as float32."""
        values = torch.empty(1, info.shape[-1])
        dequantize_into(values, self.file.packed(info), info.type.name)
        return values[0]
