"""Where the attention kernels find keys and values, dense or paged, in full precision or quantized.

    dense     key, value  [Tk, Hkv, D]            scales [Tk, Hkv] each
    paged     kv_cache    [N, B, 2, Hkv, D]       scales [N, B, 2, Hkv]

    token 37 of a sequence, B = 16:  page = block_table[37 // 16], slot = 37 % 16

Dense keys are a single long page, so that one kernel reads both. int8 needs float32 scales (value = int8 · scale, one a
token and head); FP8 (e4m3) may have them.
"""

from typing import Any, NamedTuple

import torch

from kernels.device import device_limits
from kernels.tiles import FLOAT32
from kernels.triton_api import is_interpreting, tl, triton

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
QUANTIZED = (torch.int8, torch.float8_e4m3fn)
MAX_HEAD_DIM = 256
"""Beyond, a tile of queries and one of keys do not fit into a multiprocessor together."""


class Keys(NamedTuple):
    """Keys and values as views of one shape."""

    key: torch.Tensor
    """[N, B, Hkv, D]; dense keys are [1, Tk, Hkv, D]."""
    value: torch.Tensor
    key_scales: torch.Tensor | None
    """[N, B, Hkv] float32."""
    value_scales: torch.Tensor | None

    @classmethod
    def dense(
        cls, key: torch.Tensor, value: torch.Tensor, key_scales: torch.Tensor | None, value_scales: torch.Tensor | None
    ) -> "Keys":
        """Keys and values [Tk, Hkv, D] with their scales [Tk, Hkv]. Raises ValueError for what `check` refuses."""
        if key.dim() != 3 or value.dim() != 3:
            raise ValueError(f"key is {list(key.shape)} and value {list(value.shape)}; they must be [Tk, Hkv, D]")
        scales = (None if given is None else given.unsqueeze(0) for given in (key_scales, value_scales))
        return cls(key.unsqueeze(0), value.unsqueeze(0), *scales).check()

    @classmethod
    def paged(cls, kv_cache: torch.Tensor, kv_scales: torch.Tensor | None) -> "Keys":
        """A cache [N, B, 2, Hkv, D] with its scales [N, B, 2, Hkv]. Raises ValueError for what `check` refuses."""
        if kv_cache.dim() != 5 or kv_cache.shape[2] != 2:
            raise ValueError(f"kv_cache is {list(kv_cache.shape)}; it must be [N, B, 2, Hkv, D]")
        if kv_scales is None:
            return cls(kv_cache[:, :, 0], kv_cache[:, :, 1], None, None).check()
        if kv_scales.shape != kv_cache.shape[:4]:
            raise ValueError(f"kv_scales are {list(kv_scales.shape)}; they must be {list(kv_cache.shape[:4])}")
        return cls(kv_cache[:, :, 0], kv_cache[:, :, 1], kv_scales[:, :, 0], kv_scales[:, :, 1]).check()

    def check(self) -> "Keys":
        """Return itself. Raises ValueError for shapes that do not match, scattered heads, scales that are missing or idle."""
        key, value, *scales = self
        if key.shape != value.shape or key.dtype != value.dtype or key.stride(-1) != 1 or value.stride(-1) != 1:
            raise ValueError(
                f"keys are {list(key.shape)} {key.dtype} and values {list(value.shape)} {value.dtype}; they must be of one "
                "shape and dtype, and the elements of a head next to each other"
            )
        given = [x for x in scales if x is not None]
        allowed = {torch.int8: (2,), torch.float8_e4m3fn: (0, 2)}.get(key.dtype, (0,))
        if len(given) not in allowed:
            raise ValueError(
                f"keys are {key.dtype} with {len(given)} scales; int8 needs two, FP8 none or two, others none"
            )
        for x in given:
            if (
                x.shape != key.shape[:3]
                or x.dtype != torch.float32
                or x.stride() != given[0].stride()
                or x.stride(2) != 1
            ):
                raise ValueError(
                    f"scales are {list(x.shape)} {x.dtype} with strides {x.stride()}; they must be {list(key.shape[:3])} "
                    "float32 in one layout, heads next to each other"
                )
        return self

    def group_of(self, query: torch.Tensor) -> int:
        """Return how many heads of query [T, Hq, D] share a KV head. Raises ValueError if they cannot."""
        num_kv_heads, head_dim = self.key.shape[2:]
        if query.dim() != 3 or query.shape[2] != head_dim or query.shape[1] % num_kv_heads or head_dim > MAX_HEAD_DIM:
            raise ValueError(
                f"query is {list(query.shape)} for {num_kv_heads} KV heads of {head_dim}; it must be [T, Hq, {head_dim}], Hq "
                f"a multiple of {num_kv_heads}, heads no longer than {MAX_HEAD_DIM}"
            )
        if query.dtype not in FLOATS or (self.key.dtype != query.dtype and self.key.dtype not in QUANTIZED):
            raise ValueError(
                f"query is {query.dtype} and keys are {self.key.dtype}; query must be float32, bfloat16 or float16, and keys "
                "of its dtype, int8 or float8_e4m3fn"
            )
        return query.shape[1] // num_kv_heads

    def tensors(self, *others: torch.Tensor | None) -> list[torch.Tensor]:
        """Return those of its tensors and the others that there are."""
        return [x for x in (*self, *others) if x is not None]

    def places(self, table: torch.Tensor, num_keys: int) -> torch.Tensor:
        """Return where the first keys of a sequence with this block table [W] lie, page · B + slot, [num_keys]."""
        tokens, page_size = torch.arange(num_keys, device=table.device), self.key.shape[1]
        return table[tokens // page_size].long() * page_size + tokens % page_size

    def rows(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gather key and value [len(places), Hkv, D] at page · B + slot, dequantized to float32 if they are quantized."""
        out = []
        for x, scales in ((self.key, self.key_scales), (self.value, self.value_scales)):
            rows = x.flatten(0, 1)[places]
            if x.dtype in QUANTIZED:
                rows = rows.float() if scales is None else rows.float() * scales.flatten(0, 1)[places].unsqueeze(-1)
            out.append(rows)
        return out[0], out[1]

    def arguments(self, query: torch.Tensor) -> dict[str, Any]:
        """What both kernels take: pointers, strides, and in which dtype and precision to multiply with the query.

        Raises ValueError for FP8 on a GPU that cannot convert it.
        """
        if self.key.dtype == torch.float8_e4m3fn and device_limits(self.key.device).capability < 89:
            raise ValueError(
                "keys are FP8, which needs a GPU of compute capability 8.9 at least; quantize them to int8"
            )
        scale_strides = (0, 0) if self.key_scales is None else _strides(self.key_scales)[:2]
        compute = torch.float32 if is_interpreting() else query.dtype  # the interpreter multiplies bfloat16 as integers
        return {
            "k_ptr": self.key,
            "v_ptr": self.value,
            "k_scale_ptr": self.key_scales,
            "v_scale_ptr": self.value_scales,
            **{f"k_{axis}_stride": stride for axis, stride in zip(_AXES, _strides(self.key), strict=True)},
            **{f"v_{axis}_stride": stride for axis, stride in zip(_AXES, _strides(self.value), strict=True)},
            "scale_page_stride": scale_strides[0],
            "scale_token_stride": scale_strides[1],
            "HEAD_DIM": self.key.shape[3],
            "BLOCK_D": max(triton.next_power_of_2(self.key.shape[3]), 16),
            "COMPUTE": dict(zip(FLOATS, (tl.float32, tl.bfloat16, tl.float16), strict=True))[compute],
            "PRECISION": FLOAT32 if query.dtype == torch.float32 else "tf32",
        }


_AXES = ("page", "token", "head")


def _strides(x: torch.Tensor) -> tuple[int, ...]:
    """Return the first three, but 0 for a single page's: dense keys are one, and each length would be compiled for."""
    return (x.stride(0) if len(x) > 1 else 0, *x.stride()[1:3])


def check_metadata(device: torch.device, *tensors: torch.Tensor) -> None:
    """Raise ValueError unless all of them are int32, contiguous in their last dimension, and on the device."""
    for x in tensors:
        if x.dtype != torch.int32 or x.device != device or (x.numel() > 1 and x.stride(-1) != 1):
            raise ValueError(
                f"lengths and block tables must be int32 on {device}, rows contiguous; one is {list(x.shape)} {x.dtype} on "
                f"{x.device} with strides {x.stride()}"
            )


def check_log_sum_exp(log_sum_exp: torch.Tensor | None, query: torch.Tensor) -> None:
    """Raise ValueError unless it is [T, Hq] float32 and contiguous, or not there."""
    if log_sum_exp is None:
        return
    if log_sum_exp.shape != query.shape[:2] or log_sum_exp.dtype != torch.float32 or not log_sum_exp.is_contiguous():
        raise ValueError(
            f"log_sum_exp is {list(log_sum_exp.shape)} {log_sum_exp.dtype}; it must be {list(query.shape[:2])} float32, "
            "contiguous"
        )
