"""A Hugging Face model folder as a checkpoint: config.json and safetensors, in one file or in shards with an index."""

from collections.abc import Iterator
from pathlib import Path

import torch

from infra_lab.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError
from infra_lab.models.config import ModelConfig
from infra_lab.models.hf_config import config_from_folder
from infra_lab.models.hf_json import read_json_object
from infra_lab.models.hf_safetensors import SafetensorsFile
from infra_lab.models.weights_shapes import check_shapes, is_redundant

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class HFFolder:
    """Implements `weights.Checkpoint` for a folder. Everything but the values is checked at construction.

    Raises ModelNotFoundError where config or weights are not there at all; CorruptModelError for a missing or damaged
    shard and for missing, unknown or misshapen tensors; UnsupportedModelError for what the engine does not run.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.config: ModelConfig = config_from_folder(self.path)
        self._shards = _open_shards(self.path)
        self._names: list[list[str]] = []
        shapes: dict[str, tuple[int, ...]] = {}
        files: dict[str, Path] = {}
        for shard in self._shards:
            for name, entry in shard.entries.items():
                if name in files:
                    raise CorruptModelError(f"{shard.path}: tensor {name!r} is in {files[name].name} too; fetch again")
                shapes[name], files[name] = entry.shape, shard.path
            self._names.append([name for name in shard.entries if not is_redundant(name, self.config)])
        check_shapes(self.config, shapes, self.path, files)
        for shard, names in zip(self._shards, self._names, strict=True):
            for name in names:
                shard.check_dtype(name)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors as the files hold them."""
        return sum(shard.num_bytes for shard in self._shards)

    def tensor_names(self) -> list[str]:
        """Return the names that `tensors` yields, in its order."""
        return [name for names in self._names for name in names]

    def tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, new CPU tensor of `dtype`) shard by shard in file order."""
        for shard, names in zip(self._shards, self._names, strict=True):
            yield from shard.tensors(names, dtype)


def _open_shards(folder: Path) -> list[SafetensorsFile]:
    if (folder / _SINGLE).is_file():
        return [SafetensorsFile(folder / _SINGLE)]
    if (folder / _INDEX).is_file():
        return _open_indexed(folder / _INDEX)
    if any(folder.glob("pytorch_model*.bin")):
        raise UnsupportedModelError(
            f"{folder} has pickled weights (pytorch_model.bin), which may run code when loaded; "
            "save the model again with transformers, which writes safetensors"
        )
    raise ModelNotFoundError(
        f"{folder} has a config.json but no weights; expected {_SINGLE} or {_INDEX}, "
        "or load_format='dummy' for random weights"
    )


def _open_indexed(index_path: Path) -> list[SafetensorsFile]:
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptModelError(f"{index_path} has no weight_map; fetch the model again")
    shards: dict[str, SafetensorsFile] = {}
    for name, file_name in weight_map.items():
        # An index from elsewhere must not make us read files outside its folder.
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise CorruptModelError(f"{index_path}: tensor {name!r} is in {file_name!r}, expected a file in the folder")
        path = index_path.parent / file_name
        if file_name not in shards:
            if not path.is_file():
                raise CorruptModelError(f"{path} is missing; it has tensor {name!r}; fetch the model again")
            shards[file_name] = SafetensorsFile(path)
        if name not in shards[file_name].entries:
            raise CorruptModelError(f"{path}: tensor {name!r} of the index is not in it; fetch the model again")
    return list(shards.values())
