"""The explorer compiles for GPUs that are not here, in a process of its own, whatever this one does."""

from collections.abc import Iterator

import pytest

from infra_lab.errors import ConfigError
from infra_lab.widgets import KernelExplorer
from infra_lab.widgets.kernel_explorer import params_of
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
    assert "rms_norm" in before.ptx
    assert f"{before.registers} registers a thread" in explorer.tuner.summary
    explorer.tuner.set(BLOCK=8192, num_warps=4)
    explorer.tuner.wait()
    after = explorer.tuner.result
    assert after is not None
    assert after.num_warps == 4
    assert after.registers > before.registers, "four times the columns a thread"
    occupancy = explorer.tuner.figure.data[0].x[-1]
    assert occupancy == pytest.approx(after.occupancy)


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
