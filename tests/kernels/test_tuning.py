"""The tuner with times made up by the test: what it measures, what it remembers, and what it does not believe."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import triton
from hypothesis import given
from hypothesis import strategies as st
from triton.runtime.errors import OutOfResources

from kernels import norms, sampling, tuning
from kernels.spec import KernelConfig
from kernels.triton_api import KernelUnavailableError
from kernels.tuning_file import source_hash

SPACE = tuple(KernelConfig({"BLOCK": block}, warps, 2) for block, warps in ((64, 4), (128, 4), (128, 8)))


class Bench:
    """Gives each config its time, and notes what it was asked for."""

    def __init__(self, seconds: Callable[[KernelConfig], float]) -> None:
        self.seconds = seconds
        self.asked: list[KernelConfig] = []

    def __call__(self, config: KernelConfig) -> float:
        self.asked.append(config)
        return self.seconds(config)


def by_block(config: KernelConfig) -> float:
    return config.blocks["BLOCK"] / config.num_warps


def tune(
    bench: Bench, folder: Path, *, space: tuple[object, ...] = SPACE, shape: str = "8x8", **more: str
) -> KernelConfig:
    return tuning.tune(
        more.get("name", "norm"), more.get("source", "def norm"), space, shape, bench, gpu=more.get("gpu", "A/B 1"),
        cache_dir=folder,
    )  # fmt: skip


@given(st.lists(st.floats(0, 10), min_size=3, max_size=3), st.permutations(SPACE))
def test_the_fastest_wins_and_the_first_of_equals(seconds: list[float], space: list[KernelConfig]) -> None:
    times = dict(zip(map(tuning.describe, space), seconds, strict=True))
    with patch.object(tuning, "_read", lambda *_: {}), patch.object(tuning, "_write"):
        best = tune(Bench(lambda config: times[tuning.describe(config)]), Path("unused"), space=tuple(space))
    assert best == space[seconds.index(min(seconds))]


def test_what_was_measured_is_remembered_and_can_be_read(tmp_path: Path) -> None:
    first, second = Bench(by_block), Bench(by_block)
    assert tune(first, tmp_path) == tune(second, tmp_path) == SPACE[0]
    assert first.asked == list(SPACE)
    assert second.asked == []
    (path,) = tmp_path.iterdir()  # and no temporary file is left
    assert path.name == f"A_B_1-triton{triton.__version__}-norm.json"
    assert json.loads(path.read_text())["seconds"]["8x8"]["BLOCK=64 warps=4 stages=2"] == 16.0


@pytest.mark.parametrize("change", [{"shape": "9x9"}, {"gpu": "C"}, {"name": "other"}])
def test_another_shape_gpu_or_kernel_is_another_matter(tmp_path: Path, change: dict[str, str]) -> None:
    tune(Bench(by_block), tmp_path)
    bench = Bench(by_block)
    tune(bench, tmp_path, **change)
    again = Bench(by_block)
    tune(again, tmp_path)
    assert bench.asked == list(SPACE)
    assert again.asked == [], "the first was forgotten over the second"


def test_a_wider_space_costs_what_is_new_in_it(tmp_path: Path) -> None:
    tune(Bench(by_block), tmp_path)
    bench = Bench(by_block)
    wider = (*SPACE, triton.Config({"BLOCK": 32}, num_warps=16, num_stages=1))
    assert tune(bench, tmp_path, space=wider) == KernelConfig({"BLOCK": 32}, 16, 1)
    assert bench.asked == [KernelConfig({"BLOCK": 32}, 16, 1)]
    assert tune(bench, tmp_path) == SPACE[0], "a config outside the space was returned"


def test_new_source_makes_the_file_stale(tmp_path: Path) -> None:
    tune(Bench(by_block), tmp_path)
    bench = Bench(lambda config: -by_block(config) + 100)
    with pytest.warns(UserWarning, match="stale .source changed"):
        assert tune(bench, tmp_path, source="def norm2") == SPACE[1]
    assert bench.asked == list(SPACE)
    tune(bench, tmp_path, source="def norm2")
    assert len(bench.asked) == len(SPACE)


@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"\xff\xfe", b"[]", b'{"seconds": 3}', b'{"seconds": {"8x8": {"a": "fast"}}}',
     b'{"seconds": {"8x8": {"a": NaN}}}'],
)  # fmt: skip
def test_a_damaged_file_is_set_aside(tmp_path: Path, content: bytes) -> None:
    tune(Bench(by_block), tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    bench = Bench(by_block)
    with pytest.warns(UserWarning, match="measured anew"):
        assert tune(bench, tmp_path) == SPACE[0]
    assert bench.asked == list(SPACE)
    assert json.loads(path.read_text())["kernel"] == "norm"


def test_a_config_that_cannot_run_is_left_out_and_remembered(tmp_path: Path) -> None:
    def limited(config: KernelConfig) -> float:
        if config.blocks["BLOCK"] < 128:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return by_block(config)

    with pytest.warns(UserWarning, match=r"BLOCK=64 .*does not run here"):
        assert tune(Bench(limited), tmp_path) == SPACE[2]
    bench = Bench(limited)
    assert tune(bench, tmp_path) == SPACE[2]
    assert bench.asked == []
    with pytest.raises(RuntimeError, match="none of the 1 configs of norm runs on A/B 1"):
        tune(bench, tmp_path, space=SPACE[:1])


def test_other_errors_of_a_bench_are_not_swallowed(tmp_path: Path) -> None:
    def broken(config: KernelConfig) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tune(Bench(broken), tmp_path)
    with pytest.raises(ValueError, match="must give seconds"):
        tune(Bench(lambda _: float("nan")), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_another_process_wrote_meanwhile_stays(tmp_path: Path) -> None:
    def with_a_neighbour(config: KernelConfig) -> float:
        if config == SPACE[0]:
            tune(Bench(by_block), tmp_path, shape="neighbour")
        return by_block(config)

    tune(Bench(with_a_neighbour), tmp_path)
    bench = Bench(by_block)
    tune(bench, tmp_path, shape="neighbour")
    tune(bench, tmp_path)
    assert bench.asked == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    tune(Bench(by_block), tmp_path)
    (path,) = tmp_path.iterdir()
    before = path.read_text()
    with patch.object(os, "replace", side_effect=OSError("full")), pytest.raises(OSError, match="full"):
        tune(Bench(by_block), tmp_path, shape="9x9")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == before


def test_what_is_no_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have a config"):
        tune(Bench(by_block), tmp_path, space=())
    with pytest.raises(TypeError, match="neither a KernelConfig"):
        tune(Bench(by_block), tmp_path, space=({"BLOCK": 64},))


def test_the_cache_folder_and_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFRA_LAB_CACHE", str(tmp_path))
    tuning.tune("norm", "source", SPACE, "8x8", Bench(by_block), gpu="A")
    assert len(list((tmp_path / "tuning").iterdir())) == 1
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(KernelUnavailableError, match="no GPU to tune for"):
        tuning.tune("norm", "source", SPACE, "8x8", Bench(by_block))


def test_each_kernel_has_a_hash_of_its_own() -> None:
    hashes = {source_hash(spec.kernel) for spec in (*norms.SPECS, *sampling.SPECS)}
    assert len(hashes) == 3  # two specs of the norms, and both of sampling, are of one kernel
