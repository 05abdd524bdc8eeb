"""A quantized model as a folder: saved once, loaded in seconds, without calibrating again.

    config.json         the model's, with a quantization_config: {"quant_method": "infra-lab", "scheme": "gptq-int4-g128",
                        "layers": {"model.layers.0.qkv": {"kind": "int4", …}, …}, "sha256": of the weights' file}
    model.safetensors   norms by their Hugging Face names; layers as "model.layers.0.qkv.codes", … (see `quantization.stored`)
    tokenizer.json, …   the tokenizer's files

The matrices are the engine's, q, k and v as one. A folder appears whole or not at all: it is written under another name first.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from infra_lab.errors import ConfigError, CorruptModelError
from infra_lab.models.config import ModelConfig
from infra_lab.models.download import sha256_of
from infra_lab.models.gguf_dequantize import one_thread
from infra_lab.models.hf_config import QUANT_METHOD, config_from_folder
from infra_lab.models.hf_json import read_json_object
from infra_lab.models.hf_safetensors import SafetensorsFile
from infra_lab.models.hf_write import config_to_hf, whole_folder, write_json, write_tokenizer
from infra_lab.models.layer_walk import MATRICES
from infra_lab.models.rope import RotaryTable
from infra_lab.models.transformer import CausalLM, DecoderLayer
from infra_lab.models.weights_shapes import NORM_FIELDS
from infra_lab.quantization import Linear, RowLinear
from infra_lab.quantization.schemes import LinearScheme
from infra_lab.quantization.stored import layer_from_tensors, layer_to_tensors

_VERSION = 1
_WEIGHTS = "model.safetensors"
Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def save_quantized(
    model: CausalLM, source: Path, folder: Path, *, scheme: str, progress: Progress | None = None
) -> None:
    """Save a model with its layers as they are to `folder`, with the tokenizer of `source`, where the model came from.

    Raises ConfigError if `folder` is there already and not empty; whatever fails, no half a folder stays behind.
    """
    with whole_folder(Path(folder)) as partial, one_thread():
        _write(model, source, partial, scheme, progress or (lambda done, total: None))


def _write(model: CausalLM, source: Path, folder: Path, scheme: str, progress: Progress) -> None:
    tensors = dict(_norms(model))
    options: dict[str, Any] = {}
    layers = dict(_linears(model))
    for done, (name, layer) in enumerate(layers.items()):
        options[name], parts = layer_to_tensors(layer)
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        progress(done + 1, len(layers))
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / _WEIGHTS).chmod(0o644)
    write_tokenizer(source, folder)
    quantization = {
        "quant_method": QUANT_METHOD,
        "version": _VERSION,
        "scheme": scheme,
        "sha256": sha256_of(folder / _WEIGHTS),
        "layers": options,
    }
    write_json(folder / "config.json", {**config_to_hf(model.config), "quantization_config": quantization})


def _norms(model: CausalLM) -> Iterator[tuple[str, torch.Tensor]]:
    yield "model.norm.weight", model.norm.cpu()
    for index, layer in enumerate(model.layers):
        for name, field in NORM_FIELDS.items():
            if (norm := getattr(layer, field)) is not None:
                yield f"model.layers.{index}.{name}.weight", norm.cpu()


def _linears(model: CausalLM) -> Iterator[tuple[str, Linear]]:
    yield "model.embed_tokens", model.embedding
    for index, layer in enumerate(model.layers):
        for field in MATRICES:
            yield f"model.layers.{index}.{field}", getattr(layer, field)
    if not model.config.tie_word_embeddings:
        yield "lm_head", model.lm_head


class QuantizedFolder:
    """A folder that `save_quantized` wrote. Everything but the values is checked at construction.

    Raises CorruptModelError for missing, damaged or truncated files, and for a folder of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.config: ModelConfig = config_from_folder(self.path)
        stored = read_json_object(self.path / "config.json")["quantization_config"]
        if stored.get("version") != _VERSION or not isinstance(stored.get("layers"), dict):
            raise CorruptModelError(
                f"{self.path}: quantized in format {stored.get('version')!r}, and this version reads {_VERSION}; quantize the "
                "model again with `infra-lab quantize`"
            )
        self.scheme: str = stored["scheme"]
        self._layers: dict[str, Any] = stored["layers"]
        self._sha256: str = stored["sha256"]
        self._file = SafetensorsFile(self.path / _WEIGHTS)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors as they are stored."""
        return self._file.num_bytes

    def tensor_names(self) -> list[str]:
        """Return the names of the stored tensors."""
        return list(self._file.entries)

    def tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        """Raise ConfigError: packed layers are no tensors of a floating-point dtype."""
        raise ConfigError(f"{self.path} is quantized already ({self.scheme}); give the unquantized model for this")

    def load(self, *, dtype: torch.dtype, device: torch.device, max_model_len: int) -> CausalLM:
        """Build the model. Raises CorruptModelError for weights that are not the ones that were saved."""
        with one_thread():
            return self._load(dtype, device, max_model_len)

    def _load(self, dtype: torch.dtype, device: torch.device, max_model_len: int) -> CausalLM:
        weights = self.path / _WEIGHTS
        if sha256_of(weights) != self._sha256:
            raise self._corrupt("it is not the file that was saved: its SHA-256 is another")
        tensors = load_file(weights)
        grouped: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self._layers}
        for name, tensor in tensors.items():
            for layer in _prefixes(name):
                if layer in grouped:
                    grouped[layer][name.removeprefix(layer + ".")] = tensor

        def linear(name: str) -> Any:
            return layer_from_tensors(self._layers[name], grouped.pop(name), device, dtype)

        def norm(name: str) -> torch.Tensor | None:
            found = tensors.get(name + ".weight")
            return None if found is None else found.to(device, dtype)

        try:
            embedding: RowLinear = linear("model.embed_tokens")
            layers = [self._layer(f"model.layers.{i}.", linear, norm) for i in range(self.config.num_layers)]
            if self.config.tie_word_embeddings:
                lm_head = LinearScheme().build_tied_head(embedding, dtype=dtype)
            else:
                lm_head = linear("lm_head")
            final_norm = tensors["model.norm.weight"].to(device, dtype)
        except (KeyError, ValueError) as error:
            raise self._corrupt(f"its tensors do not fit config.json ({error})") from error
        rotary = RotaryTable(self.config, max_model_len, dtype, device)
        return CausalLM(self.config, embedding, layers, final_norm, lm_head, rotary)

    def _layer(self, prefix: str, linear: Callable[[str], Any], norm: Callable[[str], Any]) -> DecoderLayer:
        norms = {field: norm(prefix + name) for name, field in NORM_FIELDS.items()}
        if norms["input_norm"] is None or norms["post_attention_norm"] is None:
            raise KeyError(f"{prefix}*layernorm")
        return DecoderLayer(**norms, **{field: linear(prefix + field) for field in MATRICES})

    def _corrupt(self, what: str) -> CorruptModelError:
        return CorruptModelError(
            f"{self.path / _WEIGHTS}: {what}; copy the folder again, or quantize the model again with `infra-lab quantize`"
        )


def _prefixes(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
