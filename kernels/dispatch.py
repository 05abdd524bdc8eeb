"""Which of an operation's two implementations runs: the Triton kernel, or the torch reference.

    INFRA_LAB_KERNELS    auto        Triton for tensors on a GPU, the reference for all others
                         triton      Triton always; on the CPU that takes TRITON_INTERPRET=1, set before `kernels` is imported
                         reference   the reference always

A launcher asks once, at its top: `if not use_triton(x): return rms_norm_reference(x, ...)`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast, get_args

import torch

from kernels.triton_api import HAS_TRITON, KernelUnavailableError, is_interpreting

Mode = Literal["auto", "triton", "reference"]
VARIABLE = "INFRA_LAB_KERNELS"

_MODES = get_args(Mode)
_override: list[Mode] = []


def mode() -> Mode:
    """Return what is in force. Raises ValueError if the variable holds something else."""
    if _override:
        return _override[-1]
    value = os.environ.get(VARIABLE, "auto")
    if value not in _MODES:
        raise ValueError(f"{VARIABLE} is {value!r}; it must be one of {', '.join(_MODES)}")
    return cast(Mode, value)


@contextmanager
def use(wanted: Mode) -> Iterator[None]:
    """Run the block with one implementation, whatever the variable says; not for several threads at once."""
    if wanted not in _MODES:
        raise ValueError(f"there is no mode {wanted!r}; there are {', '.join(_MODES)}")
    _override.append(wanted)
    try:
        yield
    finally:
        _override.pop()


def launches_on(device: torch.device) -> bool:
    """Whether kernels are what runs for tensors on this device: for who prepares what only they, or only references, need."""
    return mode() == "triton" or (mode() == "auto" and HAS_TRITON and device.type == "cuda")


def use_triton(*tensors: torch.Tensor) -> bool:
    """Whether to launch a kernel on these tensors.

    Raises ValueError if one of them wants a gradient (the kernels have no backward pass) or if they lie on different devices,
    and KernelUnavailableError if Triton is asked for and cannot run on them.
    """
    wanted = mode()
    if wanted == "reference" or (wanted == "auto" and not (HAS_TRITON and tensors[0].is_cuda)):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise ValueError(
            "these kernels compute no gradients; run them under torch.no_grad(), or train with kernels.use('reference')"
        )
    if any(tensor.device != tensors[0].device for tensor in tensors):
        raise ValueError(
            f"the tensors lie on {', '.join(str(tensor.device) for tensor in tensors)}; move them to one device"
        )
    if not tensors[0].is_cuda and not is_interpreting():
        raise KernelUnavailableError(
            f"Triton does not run on {tensors[0].device}; set TRITON_INTERPRET=1 before `kernels` is imported, or use "
            f"{VARIABLE}=auto"
        )
    return True
