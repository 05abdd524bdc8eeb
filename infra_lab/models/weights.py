"""Checkpoints: where weights come from, behind one interface.

    a .gguf file           GGUFCheckpoint     dequantized row by row from the mapped file
    a Hugging Face folder  HFFolder           read from safetensors, one file or shards
      quantized by us      QuantizedFolder    layers as they were saved
    load_format="dummy"    DummyCheckpoint    random weights of the right shapes

All speak Hugging Face's parameter names, and all hand out one tensor at a time, so that a caller who converts and drops
each never holds the model twice.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch

from infra_lab.errors import ConfigError, ModelNotFoundError, UnsupportedModelError
from infra_lab.models.config import ModelConfig
from infra_lab.quantization.grouped import GroupedInt

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What models are computed and saved in, by name."""


class Checkpoint(Protocol):
    """A model's configuration and its tensors. Names, shapes and dtypes were checked when it was opened."""

    config: ModelConfig
    path: Path

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors as they are stored."""
        ...

    def tensor_names(self) -> list[str]:
        """Return the names that `tensors` yields, in its order."""
        ...

    def tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor once, in file order: (Hugging Face parameter name, CPU tensor of `dtype`).

        Each tensor is new memory that belongs to the caller, matrices are [out, in], and a tied lm_head is absent. The
        iterator keeps nothing of what it has yielded; it may be run again.
        """
        ...


@runtime_checkable
class BlockCheckpoint(Checkpoint, Protocol):
    """A checkpoint whose matrices are packed already."""

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor | GroupedInt]]:
        """Yield what `tensors` yields, but matrices of integer blocks as these integers."""
        ...


def open_checkpoint(path: Path, *, load_format: Literal["auto", "dummy"] = "auto", seed: int = 0) -> Checkpoint:
    """Open a .gguf file or a Hugging Face folder and check that it is whole, without reading the values.

    `load_format="dummy"` takes the configuration alone and makes random weights from `seed`; a folder then needs
    nothing but a config.json. Raises ModelNotFoundError, CorruptModelError, UnsupportedModelError, or ConfigError for
    another load format.
    """
    # GGUF and safetensors are imported when they are met: a machine may have only one of the two libraries.
    path = Path(path)
    if load_format not in ("auto", "dummy"):
        raise ConfigError(f"load_format is {load_format!r}; it must be 'auto' or 'dummy'")
    if not path.exists():
        raise ModelNotFoundError(f"{path} does not exist; expected a .gguf file or a Hugging Face model folder")
    if load_format == "dummy":
        from infra_lab.models.dummy import DummyCheckpoint

        return DummyCheckpoint(_config_of(path), seed=seed, path=path)
    if path.is_dir():
        return _open_folder(path)
    return _open_gguf(path)


def _open_folder(path: Path) -> Checkpoint:
    from infra_lab.models.hf_config import QUANT_METHOD, quantization_method
    from infra_lab.models.hf_json import Fields, read_json_object

    config = path / "config.json"
    if config.is_file() and quantization_method(Fields(read_json_object(config), config)) == QUANT_METHOD:
        from infra_lab.models.quantized_folder import QuantizedFolder

        return QuantizedFolder(path)
    from infra_lab.models.hf_folder import HFFolder

    return HFFolder(path)


def _config_of(path: Path) -> ModelConfig:
    if path.is_dir():
        from infra_lab.models.hf_config import config_from_folder

        return config_from_folder(path)
    return _open_gguf(path).config


def _open_gguf(path: Path) -> Checkpoint:
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        raise UnsupportedModelError(f"{path} is a file of weights alone; give its folder, which has the config.json")
    from infra_lab.models.gguf_checkpoint import GGUFCheckpoint

    return GGUFCheckpoint(path)
