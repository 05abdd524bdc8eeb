"""An embedding of 4 bits that is the output layer too: the chapter's literal "INT4 for non-core layers, such as the embedding".

As an embedding it is harmless: a row is looked up, and nothing else. Tied to the output layer, every logit is made of it.
"""

import torch

from infra_lab.quantization.cpu_int4 import unpack_cpu_int4
from infra_lab.quantization.grouped import effective_group_size, rtn
from infra_lab.quantization.linear_int4 import Int4Linear, MiddleGroups, middle_groups


class Int4Embedding(Int4Linear):
    """Int4Linear on the CPU, whose rows can be read again."""

    def __init__(self, weight: torch.Tensor, group_size: int = 128) -> None:
        """Round weight [V, H], of the engine's dtype, to the nearest; raises ConfigError where no group size divides H."""
        size = effective_group_size(weight.shape[1], group_size)
        super().__init__(middle_groups(rtn(weight, 4, size, name="the embedding")))
        self.dtype = weight.dtype

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows of the weight in the engine's dtype, [len(indices), H]."""
        scale, middle = self.scale_middle[:, indices].transpose(0, 1).unbind(2)  # each [rows, groups]
        return MiddleGroups(unpack_cpu_int4(self.packed, indices), scale, middle).dequantize(self.dtype)
