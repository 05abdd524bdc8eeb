"""What is calibrated on, what is remembered of it, and the way of it through a model."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra_lab import LLM, SamplingParams
from infra_lab.data import data_path
from infra_lab.errors import ConfigError
from infra_lab.models.calibrate import calibrate, quantize_model
from infra_lab.models.calibrated import SINK_WEIGHT, Quantized, Target, dense_layer, quantize_layers, token_weights
from infra_lab.models.layer_walk import LayerWalk
from infra_lab.models.sensitivity import kl_divergence
from infra_lab.models.tokenizer import load_tokenizer
from infra_lab.models.transformer import CausalLM
from infra_lab.quantization import LinearScheme
from infra_lab.quantization.calibration import calibration_tokens, help_texts, token_slices
from infra_lab.quantization.linear_int4 import Int4Linear
from infra_lab.quantization.linear_w8a8 import Float8Linear, Int8ActivationLinear
from infra_lab.quantization.observers import AbsMax, Hessian, Histogram, MinMax
from infra_lab.quantization.recipes import RECIPES
from tests.models.hf_models import load_folder, logits_of


def tiny(name: str | None = None) -> CausalLM:
    return load_folder(data_path("tiny"), LinearScheme(RECIPES[name]) if name else None)


def encode(text: str) -> list[int]:
    return load_tokenizer(data_path("tiny")).encode(text)


def test_the_halves_of_the_help_texts_share_no_paragraph() -> None:
    halves = [set(help_texts(half).split("\n\n")) for half in ("calibration", "evaluation")]  # type: ignore[arg-type]
    assert not halves[0] & halves[1]
    assert min(len(help_texts("calibration")), len(help_texts("evaluation"))) > 100_000


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 200))
def test_slices_are_apart_and_spread_over_the_text(num_slices: int, length: int, extra: int) -> None:
    text = list(range(num_slices * length + extra))
    slices = token_slices(text, num_slices, length)
    assert slices.shape == (num_slices, length)
    assert len(slices.unique()) == num_slices * length
    assert all(torch.equal(piece, torch.arange(int(piece[0]), int(piece[0]) + length)) for piece in slices)
    assert num_slices == 1 or int(slices[-1, -1]) >= len(text) - num_slices
    with pytest.raises(ConfigError, match="give a longer text"):
        token_slices(text[: num_slices * length - 1], num_slices, length)


def test_calibration_texts_that_are_too_short_or_too_long() -> None:
    with pytest.raises(ConfigError, match="128 slices of 64 tokens are 8,192, and the text has 100"):
        calibration_tokens(encode, text="a" * 100)
    with pytest.raises(ConfigError, match="texts of 2000 tokens, and the model was loaded for 1024"):
        LayerWalk(tiny(), torch.zeros(1, 2000, dtype=torch.int64))
    assert torch.equal(calibration_tokens(encode, num_slices=2), calibration_tokens(encode, num_slices=2))


def test_observers_over_batches_equal_the_whole() -> None:
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    observers = MinMax(), AbsMax(), Hessian(), Histogram()
    for batch in x.split(37):
        for observer in observers:
            observer.observe(batch)
    min_max, abs_max, hessian, histogram = observers
    assert min_max.range == (float(x.min()), float(x.max()))
    assert torch.equal(abs_max.channels, x.abs().amax(dim=0))
    assert abs_max.whole == float(x.abs().max())
    wide = x.double()
    assert torch.allclose(hessian.matrix.double(), 2 * wide.t() @ wide / 500, rtol=1e-4, atol=1e-3)
    assert torch.allclose(hessian.magnitudes, x.abs().mean(dim=0), rtol=1e-5)
    width = histogram.largest / 4096
    for percent in (1, 50, 99.9, 100):
        assert histogram.percentile(percent) == pytest.approx(
            np.percentile(x.abs(), percent), abs=0.03 if percent < 100 else 2 * width
        )
    for bits in (4, 8):
        limit = histogram.least_error(bits)
        assert rounding_error(x, limit, bits) <= 1.02 * min(
            rounding_error(x, float(a), bits) for a in np.linspace(0.5, 32, 200)
        )
    assert histogram.least_error(4) < histogram.least_error(8) <= histogram.largest


def rounding_error(x: torch.Tensor, limit: float, bits: int) -> float:
    step = limit / (2 ** (bits - 1) - 1)
    return float(((x / step).round().clamp(-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) * step - x).square().mean())


@pytest.mark.parametrize("observer", [MinMax(), AbsMax(), Hessian(), Histogram()])
def test_observers_refuse_what_would_spoil_them(observer: MinMax | AbsMax | Hessian | Histogram) -> None:
    with pytest.raises(ConfigError, match="nothing was observed"):
        _ = {
            MinMax: lambda o: o.range,
            AbsMax: lambda o: o.channels,
            Hessian: lambda o: o.matrix,
            Histogram: lambda o: o.percentile(50),
        }[type(observer)](observer)
    with pytest.raises(ConfigError, match="NaN or infinite activations"):
        observer.observe(torch.tensor([[1.0, torch.inf]]))
    with pytest.raises(ConfigError, match="no values"):
        observer.observe(torch.zeros(0, 4))


def test_a_walk_is_the_engines_forward_pass() -> None:
    model, token_ids = tiny(), torch.tensor([list(b"for x in range"), list(b"return a list ")])
    walk = LayerWalk(model, token_ids)
    stops = [stop.matrix for layer in model.layers for stop in walk.through(layer)]
    assert stops == ["qkv", "o", "gate_up", "down"] * 4
    expected = torch.cat([logits_of(model, text.tolist()) for text in token_ids])
    assert torch.allclose(walk.logits(), expected, atol=1e-4)


LAYERS = {
    "gptq-int4-g128": Int4Linear,
    "awq-int4-g32": Int4Linear,
    "gptq-int3-g64": Int4Linear,
    "fp8-static": Float8Linear,
    "smoothquant-w8a8": Int8ActivationLinear,
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_name_makes_a_model_close_to_the_dense_one(name: str) -> None:
    model, dense = tiny(name), tiny()
    calls: list[tuple[int, int]] = []
    quantize_model(
        model,
        calibration_tokens(encode, num_slices=8, length=64),
        RECIPES[name],
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(i + 1, 16) for i in range(16)]
    assert {type(getattr(layer, matrix)) for layer in model.layers for matrix in ("qkv", "o", "gate_up", "down")} == {
        LAYERS[name]
    }
    text = encode(help_texts("evaluation"))[:200]
    expected, found = (torch.log_softmax(logits_of(m, text).float(), dim=-1) for m in (dense, model))
    assert 0 < kl_divergence(expected, found) < {3: 0.3, 4: 0.08, 8: 0.01}[RECIPES[name].bits]


@pytest.mark.parametrize(("method", "share"), [("gptq", 0.7), ("awq", 0.9)])
def test_calibrated_methods_lose_less_than_rounding_on_other_text(method: str, share: float) -> None:
    tokens = calibration_tokens(encode, num_slices=8, length=128)
    text = encode(help_texts("evaluation"))[:400]
    expected = torch.log_softmax(logits_of(tiny(), text), dim=-1)
    losses = {}
    for name in (f"{method}-int3-g64", "rtn-int3-g64"):
        model = tiny(name)
        if RECIPES[name].needs_calibration:
            quantize_model(model, tokens, RECIPES[name])
        losses[name] = kl_divergence(expected, torch.log_softmax(logits_of(model, text), dim=-1))
    assert losses[f"{method}-int3-g64"] < share * losses["rtn-int3-g64"]


def test_static_fp8_takes_the_largest_activation_as_its_range() -> None:
    model, tokens = tiny("fp8-static"), torch.tensor([list(b"The quick brown fox jumps")])
    walk = LayerWalk(model, tokens)
    first = next(iter(walk.through(model.layers[0])))
    quantize_model(model, tokens, RECIPES["fp8-static"])
    layer = model.layers[0].qkv
    assert isinstance(layer, Float8Linear)
    assert layer.input_scale == pytest.approx(float(first.inputs.abs().max()) / 448)


def test_refusals() -> None:
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    with pytest.raises(ConfigError, match="starts from dense weights"):
        quantize_model(tiny("int8"), tokens, RECIPES["gptq-int4-g128"])
    broken = tiny("gptq-int4-g64")
    dense_layer(broken.layers[1], "o").weight[0, 0] = torch.nan
    with pytest.raises(ConfigError, match=r"model\.layers\.1\.o has NaN or infinite weights"):
        quantize_model(broken, tokens, RECIPES["gptq-int4-g64"])
    with pytest.raises(ConfigError, match="the text has 4"):
        calibrate(tiny("gptq-int4-g64"), encode, RECIPES["gptq-int4-g64"], text="abcd")


def test_the_engine_calibrates_where_the_name_asks_for_it() -> None:
    llm = LLM("tiny", quantization="gptq-int4-g64", device="cpu", dtype="float32", max_model_len=128)
    assert isinstance(llm.model.layers[3].down, Int4Linear)
    dense = LLM("tiny", device="cpu", dtype="float32", max_model_len=128)
    params = SamplingParams(max_tokens=24, temperature=0.0)
    texts = [engine.generate(["Return a list of"], params)[0].token_ids for engine in (llm, dense)]
    assert texts[0][:4] == texts[1][:4]


def test_the_first_token_of_a_text_counts_more_in_front_of_qkv() -> None:
    x, config = torch.ones(8, 5), tiny().config  # 2 texts of 4 tokens
    for matrix, first in (("qkv", SINK_WEIGHT), ("o", 1)):
        found = token_weights(Target("w", matrix, torch.ones(2, 5), x, x, 4, config))  # type: ignore[arg-type]
        assert found.tolist() == [first, 1, 1, 1] * 2


def test_a_target_knows_what_the_full_model_would_get() -> None:
    """The second walk goes through the dense layers, whatever the first has put in their places."""
    model, tokens = tiny("gptq-int4-g64"), torch.tensor([list(b"The quick brown fox jumps")])
    expected = []
    walk = LayerWalk(tiny("gptq-int4-g64"), tokens)
    for layer in walk.model.layers:
        expected += [stop.inputs.clone() for stop in walk.through(layer)]
    seen = []

    def halved(target: Target) -> Quantized:
        seen.append((target.inputs.clone(), target.full_inputs.clone()))
        return Quantized(target.weight / 2)

    quantize_layers(model, tokens, halved, RECIPES["gptq-int4-g64"])
    assert len(seen) == len(expected)
    for (inputs, full_inputs), right in zip(seen, expected, strict=True):
        torch.testing.assert_close(full_inputs, right)
        assert inputs is seen[0][0] or not torch.allclose(inputs, right)
