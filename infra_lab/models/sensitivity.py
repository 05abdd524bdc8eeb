"""How much a model loses where one matrix alone goes to 4 bits, measured; and the mixed precision that follows from it."""

import torch

from infra_lab.models.calibrated import Method, Progress, Quantized, Target, dense_layer, quantize_gptq
from infra_lab.models.layer_walk import MATRICES, LayerWalk
from infra_lab.models.transformer import CausalLM
from infra_lab.quantization import DenseLinear
from infra_lab.quantization.float_weights import quantize_fp8_weight
from infra_lab.quantization.grouped import effective_group_size, rtn
from infra_lab.quantization.mixed import Candidate, choose_int4

INT4_GROUP = 128
SENSITIVITY_TEXTS, SENSITIVITY_TOKENS = 4, 64
SHRINK = 2.5
"""The layers' matrices get 1/2.5 of their bytes in 16 bits: 6.4 bits a weight, somewhat under half of them in INT4."""


@torch.no_grad()
def int4_sensitivity(model: CausalLM, token_ids: torch.Tensor, *, progress: Progress | None = None) -> dict[str, float]:
    """Return for each matrix, by name, KL(dense ‖ the same with this matrix in INT4) in nats a token.

    token_ids: [texts, tokens]. The matrix is rounded to the nearest in groups of 128; all others stay dense. What comes
    before it does not change, so only the layers from there on are computed again: half of a forward pass a matrix on average.
    """
    walk = LayerWalk(model, token_ids)
    hidden = []  # in front of each layer
    for layer in model.layers:
        hidden.append(walk.hidden)
        for _ in walk.through(layer):
            pass
    expected = torch.log_softmax(walk.logits().float(), dim=-1)  # [T, V]
    result: dict[str, float] = {}
    for index, layer in enumerate(model.layers):
        for matrix in MATRICES:
            dense = dense_layer(layer, matrix)
            size = effective_group_size(dense.weight.shape[1], INT4_GROUP)
            rounded = rtn(dense.weight, 4, size, name=f"model.layers.{index}.{matrix}").dequantize(dense.weight.dtype)
            setattr(layer, matrix, DenseLinear(rounded, dense.bias))
            try:
                logits = walk.logits_from(hidden[index], model.layers[index:])
            finally:
                setattr(layer, matrix, dense)
            result[f"model.layers.{index}.{matrix}"] = kl_divergence(
                expected, torch.log_softmax(logits.float(), dim=-1)
            )
            if progress is not None:
                progress(len(result), len(model.layers) * len(MATRICES))
    return result


def kl_divergence(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Return KL(expected ‖ found) in nats a token, of log-probabilities [T, V]."""
    return float((expected.exp() * (expected - found)).sum(dim=-1).mean())


@torch.no_grad()
def mixed_method(
    model: CausalLM, token_ids: torch.Tensor, *, budget_bytes: int | None = None, progress: Progress | None = None
) -> Method:
    """Return the method that puts the least sensitive matrices into INT4 (by GPTQ) and all others into FP8.

    budget_bytes: what the layers' matrices may take; None: 1/2.5 of what they take in 16 bits. Raises ConfigError if that
    is less than INT4 everywhere.
    """
    sensitivity = int4_sensitivity(model, token_ids[:SENSITIVITY_TEXTS, :SENSITIVITY_TOKENS], progress=progress)
    candidates = {}
    num_weights = 0
    for index, layer in enumerate(model.layers):
        for matrix in MATRICES:
            num_out, num_in = dense_layer(layer, matrix).weight.shape
            num_groups = num_in // effective_group_size(num_in, INT4_GROUP)
            name = f"model.layers.{index}.{matrix}"
            int4_bytes = num_out * (num_in // 2 + 4 * num_groups)  # a scale and a middle of 16 bits
            candidates[name] = Candidate(sensitivity[name], num_out * (num_in + 4), int4_bytes)
            num_weights += num_out * num_in
    chosen = set(choose_int4(candidates, int(2 * num_weights / SHRINK) if budget_bytes is None else budget_bytes))

    def quantize(target: Target) -> Quantized:
        if target.name not in chosen:
            return Quantized(quantize_fp8_weight(target.weight, target.name))
        size = effective_group_size(target.weight.shape[1], INT4_GROUP)
        return quantize_gptq(target, 4, size)

    return quantize
