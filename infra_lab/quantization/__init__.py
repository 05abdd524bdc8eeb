"""Weights in fewer bits: the seam through which every linear layer of a model is built."""

from infra_lab.quantization.linear import DenseLinear, Linear
from infra_lab.quantization.schemes import LinearScheme, parse_scheme

__all__ = ["DenseLinear", "Linear", "LinearScheme", "parse_scheme"]
