"""Which quantization a name stands for."""

import re
from dataclasses import dataclass
from typing import Literal

import torch

from infra_lab.errors import ConfigError
from infra_lab.quantization.linear import DenseLinear, Int4Linear, Int8Linear, Linear, PrepackedLinear, can_prepack

KNOWN = ("int8", "rtn-int4-g32", "rtn-int4-g64", "rtn-int4-g128")


@dataclass(frozen=True, slots=True)
class LinearScheme:
    """How the linear layers of a model are stored."""

    kind: Literal["dense", "int8", "int4"] = "dense"
    group_size: int = 0

    def build(self, weight: torch.Tensor, bias: torch.Tensor | None, name: str) -> Linear:
        """Turn one dense weight [out, in] into a layer; `name` is for the error message.

        Raises ConfigError if the group size does not divide the input width.
        """
        if self.kind == "dense":
            is_packable = weight.device.type == "cpu" and weight.dtype is torch.bfloat16 and can_prepack()
            return PrepackedLinear(weight, bias) if is_packable else DenseLinear(weight, bias)
        if self.kind == "int8":
            return Int8Linear(weight, bias)
        if weight.shape[1] % self.group_size:
            raise ConfigError(
                f"{name} has {weight.shape[1]} inputs, which groups of {self.group_size} do not divide; "
                "choose a smaller group (rtn-int4-g32, rtn-int4-g64) or int8"
            )
        return Int4Linear(weight, bias, group_size=self.group_size)

    def build_embedding(self, weight: torch.Tensor) -> DenseLinear | Int8Linear:
        """The embedding, [V, H]: 8 bits in every quantized scheme, since single rows are looked up in it."""
        return DenseLinear(weight) if self.kind == "dense" else Int8Linear(weight)

    def build_tied_head(self, embedding: DenseLinear | Int8Linear) -> Linear:
        """The output layer that shares the embedding's weights.

        Where dense weights are prepacked for the CPU, this is a second copy of them: SmolLM2 takes a fifth more memory, and
        its largest matrix a third of the time.
        """
        if isinstance(embedding, Int8Linear):
            return embedding
        head = self.build(embedding.weight, None, "lm_head")
        return head if isinstance(head, PrepackedLinear) else embedding


def parse_scheme(name: str | None, *, device: torch.device, dtype: torch.dtype) -> LinearScheme:
    """Return the scheme of that name; None is dense.

    Raises ConfigError for an unknown name, listing the known ones, and for int4 where its kernel does not run.
    """
    if name is None:
        return LinearScheme()
    if name == "int8":
        return LinearScheme("int8")
    if match := re.fullmatch(r"rtn-int4-g(32|64|128)", name):
        if device.type != "cpu" or dtype is not torch.bfloat16:
            raise ConfigError(
                f"{name} runs on a CPU in bfloat16 only, and this engine is on {device} in {dtype}; "
                "leave dtype at 'auto', or choose int8"
            )
        return LinearScheme("int4", int(match[1]))
    raise ConfigError(f"unknown quantization {name!r}; known: {', '.join(KNOWN)}")
