"""What a launch depends on, of the GPU it goes to."""

from functools import cache
from typing import NamedTuple

import torch


class DeviceLimits(NamedTuple):
    """Asked once: to ask the driver for every launch would cost as much as launching."""

    capability: int
    """Compute capability × 10."""
    multiprocessors: int


@cache
def device_limits(device: torch.device) -> DeviceLimits:
    """Return those of a GPU; the interpreter on the CPU passes for an H200."""
    if device.type != "cuda":
        return DeviceLimits(90, 132)
    properties = torch.cuda.get_device_properties(device)
    return DeviceLimits(10 * properties.major + properties.minor, properties.multi_processor_count)
