"""Weights in fewer bits: the seam through which every linear layer of a model is built."""

from infra_lab.quantization.layers import linear_of
from infra_lab.quantization.linear import DenseLinear, Linear, RowLinear
from infra_lab.quantization.schemes import LinearScheme, parse_scheme

__all__ = ["DenseLinear", "Linear", "LinearScheme", "RowLinear", "linear_of", "parse_scheme"]
