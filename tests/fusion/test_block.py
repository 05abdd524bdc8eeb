"""The block that compilers are given is the layer that transformers has, and the layer that the engine runs."""

from dataclasses import replace

import pytest
import torch
import transformers

import kernels
from infra_lab.errors import UnsupportedModelError
from infra_lab.fusion.block import BlockShape, DecoderBlock, NormSpelling, block_inputs, block_of
from infra_lab.fusion.engine_layer import BLOCK_SIZE, engine_state
from infra_lab.models.config import ModelConfig
from infra_lab.models.fetch import resolve_model
from infra_lab.models.loading import load_model
from infra_lab.models.transformer import CausalLM
from infra_lab.models.weights import open_checkpoint
from infra_lab.quantization import LinearScheme
from tests.fusion.layers import SMALL, block_with_data

SHAPES = [BlockShape(1, 1, 23), BlockShape(1, 24, 0), BlockShape(3, 5, 9), BlockShape(2, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", ["rsqrt", "divide"])
def test_it_is_the_layer_of_transformers(shape: BlockShape, norm: NormSpelling) -> None:
    block, inputs = block_with_data(shape, norm=norm)
    theirs = llama_layer(block)
    cache = transformers.DynamicCache()
    if shape.past:
        cache.update(inputs.past_key, inputs.past_value, 0)
    positions = (inputs.cos.unsqueeze(0), inputs.sin.unsqueeze(0))
    mask = inputs.mask.expand(shape.batch, 1, -1, -1)
    with torch.no_grad():
        expected = theirs(inputs.x, attention_mask=mask, position_embeddings=positions, past_key_values=cache)
        output, key, value = block(*inputs)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(output, expected.view_as(output), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(key, cache.layers[0].keys, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(value, cache.layers[0].values, atol=2e-5, rtol=1e-4)


def llama_layer(block: DecoderBlock) -> torch.nn.Module:
    """Their layer with the block's weights."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    config = transformers.LlamaConfig(
        hidden_size=SMALL.hidden_size, intermediate_size=SMALL.intermediate_size, num_attention_heads=SMALL.num_heads,
        num_key_value_heads=SMALL.num_kv_heads, head_dim=SMALL.head_dim, rms_norm_eps=SMALL.rms_norm_eps,
        attn_implementation="eager",
    )  # fmt: skip
    layer = LlamaDecoderLayer(config, layer_idx=0).eval()
    names = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.o_proj": "o",
             "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down",
             "input_layernorm": "input_norm", "post_attention_layernorm": "post_attention_norm"}  # fmt: skip
    layer.load_state_dict({f"{theirs}.weight": getattr(block, ours) for theirs, ours in names.items()})
    return layer


def load(name: str) -> tuple[ModelConfig, CausalLM]:
    checkpoint = open_checkpoint(resolve_model(name))
    cpu = torch.device("cpu")
    model = load_model(checkpoint, dtype=torch.float32, device=cpu, scheme=LinearScheme(), max_model_len=64)
    return checkpoint.config, model


@pytest.mark.parametrize("model_name", ["tiny", pytest.param("smollm2-135m", marks=pytest.mark.smollm2)])
@pytest.mark.parametrize("shape", [BlockShape(2, 1, 20), BlockShape(2, 21, 0)], ids=str)
@pytest.mark.parametrize("fused_start", [False, True])
def test_with_real_weights_it_is_what_the_engine_computes(
    model_name: str, shape: BlockShape, fused_start: bool
) -> None:
    config, model = load(model_name)
    layer = model.layers[0]
    block = block_of(layer, config)
    inputs = block_inputs(config, shape, dtype=torch.float32, device="cpu")
    expected, key, value = block(*inputs)

    x = torch.randn(shape.batch * shape.tokens, config.hidden_size, generator=torch.Generator().manual_seed(3))
    residual = inputs.x.reshape(-1, config.hidden_size) - x  # the turn begins by adding what is left to add
    state = engine_state(config, shape, x, residual, "cpu")
    state.kv_cache.fill_(float("nan"))  # what is never written must never be read
    put(state.kv_cache, inputs.past_key, inputs.past_value)
    with torch.no_grad(), kernels.use("reference"):
        left = layer.turn(*state, fuses=fused_start)
    torch.testing.assert_close((state.residual + left).view_as(expected), expected, atol=1e-4, rtol=1e-3)
    length = shape.past + shape.tokens
    by_sequence = state.kv_cache.view(shape.batch, -1, 2, config.num_kv_heads, config.head_dim)[:, :length]
    torch.testing.assert_close(by_sequence[:, :, 0].transpose(1, 2), key, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(by_sequence[:, :, 1].transpose(1, 2), value, atol=1e-4, rtol=1e-3)


def put(kv_cache: torch.Tensor, past_key: torch.Tensor, past_value: torch.Tensor) -> None:
    """Write what was there before to where `engine_state` has the blocks of each sequence: behind each other."""
    batch, _, past, _ = past_key.shape
    assert kv_cache.shape[1] == BLOCK_SIZE
    rows = kv_cache.view(batch, -1, *kv_cache.shape[2:])
    rows[:, :past, 0] = past_key.transpose(1, 2)
    rows[:, :past, 1] = past_value.transpose(1, 2)


def test_a_layer_with_more_in_it_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="without biases"):
        DecoderBlock(replace(SMALL, architecture="qwen3", qk_norm=True))
