"""The explorer compiles for GPUs that are not here, in a process of its own, whatever this one does."""

from collections.abc import Iterator

import pytest

from infra_lab.errors import ConfigError
from infra_lab.widgets import KernelExplorer
from infra_lab.widgets.kernel_explorer import params_of
from kernels.chips import CHIPS
from kernels.compile_worker import CompileError, CompileWorker
from kernels.registry import all_specs
from kernels.spec import KernelConfig
from kernels.triton_api import KernelUnavailableError


@pytest.fixture
def explorer() -> Iterator[KernelExplorer]:
    made = KernelExplorer("rms_norm", "layer_norm")
    made.tuner.wait()
    yield made
    made.worker.close()


def test_a_bigger_block_is_compiled_and_shown(explorer: KernelExplorer) -> None:
    before = explorer.tuner.result
    assert before is not None
    assert "rms_norm" in before.compiled.ptx
    assert f"{before.compiled.registers} registers a thread" in explorer.tuner.summary
    explorer.tuner.set(BLOCK=8192, num_warps=4)
    explorer.tuner.wait()
    after = explorer.tuner.result
    assert after is not None
    assert after.compiled.num_warps == 4
    assert after.compiled.registers > before.compiled.registers, "four times the columns a thread"
    figure = explorer.tuner.figure
    assert all(trace.name for trace in figure.data if trace.showlegend is not False), "no `trace 0` in the legend"
    occupancy = figure.data[0].x[-1]
    assert occupancy == pytest.approx(after.compiled.occupancy)


def point(explorer: KernelExplorer, name: str) -> tuple[float, float] | None:
    (trace,) = (trace for trace in explorer.tuner.figure.data if trace.name == name)
    assert (trace.xaxis, trace.yaxis) == ("x2", "y2")
    return (trace.x[0], trace.y[0]) if len(trace.x) else None


def test_another_gpu_moves_the_prediction_under_its_own_roof(explorer: KernelExplorer) -> None:
    work, config = all_specs()["rms_norm"].work, all_specs()["rms_norm"].configs[0]
    for name in ("H100", "A100"):
        explorer.tuner.set(gpu=name)
        explorer.tuner.wait()
        chip, look = CHIPS[name], explorer.tuner.result
        assert look is not None
        assert look.compiled.target == chip.target
        seconds = look.prediction.seconds
        assert seconds is not None
        assert seconds == pytest.approx(work.cost.num_bytes / chip.memory_bytes_per_s), "memory-bound, as a copy is"
        x, y = point(explorer, "this config") or (0, 0)
        assert x == pytest.approx(work.cost.flops / work.traffic(config).num_bytes)
        assert y == pytest.approx(work.cost.flops / seconds)
        assert point(explorer, "least cost") == pytest.approx((work.cost.intensity, y)), "at the roof"
        assert f"16,384 × 4,096, bf16 on {name}: predicted" in explorer.tuner.summary
        assert "100% of the roofline; memory-bound" in explorer.tuner.summary


def test_a_config_that_would_be_wrong_has_no_point(explorer: KernelExplorer) -> None:
    explorer.tuner.set(BLOCK=2048)
    explorer.tuner.wait()
    assert point(explorer, "this config") is None
    assert point(explorer, "least cost") is not None
    assert "no prediction. A block of 2,048 does not hold a row of 4,096" in explorer.tuner.summary


def test_each_stage_shows_its_own_language(explorer: KernelExplorer) -> None:
    expected = {"PTX": ".visible .entry", "TTIR": "tt.func", "TTGIR": "#blocked", "SASS": "code for sm_90"}
    for stage, sign in expected.items():
        explorer.stage.value = stage
        assert sign in explorer._code.value.replace("<mark>", "").replace("</mark>", "")
    assert "def _rms_norm" in explorer._source.value


def test_another_kernel_has_its_own_panel(explorer: KernelExplorer) -> None:
    first = explorer.tuner
    explorer.kernel.value = "layer_norm"
    explorer.tuner.wait()
    assert explorer.tuner is not first
    assert "def _layer_norm" in explorer._source.value
    assert explorer._panel.children == (explorer.tuner.widget,)
    assert "layer_norm:" in explorer._repr_mimebundle_()["text/plain"]


def test_a_kernel_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no kernel 'softmix'.*rms_norm"):
        KernelExplorer("softmix")


@pytest.mark.parametrize("name", all_specs())
def test_every_kernel_has_knobs_that_start_where_it_runs(name: str) -> None:
    spec = all_specs()[name]
    params = params_of(spec)()
    assert {size: getattr(params, size) for size in spec.configs[0].blocks} == dict(spec.configs[0].blocks)
    assert (params.num_warps, params.num_stages) == (spec.configs[0].num_warps, spec.configs[0].num_stages)


def test_the_compilers_refusal_is_an_error_and_the_worker_goes_on() -> None:
    worker = CompileWorker()
    try:
        with pytest.raises(CompileError, match="power of 2"):
            worker.compile("rms_norm", 90, KernelConfig({"BLOCK": 1000}))
        assert worker.compile("rms_norm", 90, KernelConfig({"BLOCK": 1024})).registers > 0
        assert worker._process is not None
        worker._process.kill()
        worker._process.wait()
        assert worker.compile("rms_norm", 80, KernelConfig({"BLOCK": 1024})).target == 80, "it starts again"
    finally:
        worker.close()


def test_a_worker_that_dies_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    worker = CompileWorker()
    with pytest.raises(KernelUnavailableError, match="ended with status 1"):
        worker.compile("rms_norm", 90, KernelConfig({"BLOCK": 1024}))
