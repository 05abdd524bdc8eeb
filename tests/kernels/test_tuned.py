"""What a tuner measured is what launchers launch: with times made up by the test, in the interpreter."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from hypothesis import given
from hypothesis import strategies as st

from kernels import activations, tuned, tuning
from kernels.activations import silu_mul, silu_mul_reference
from kernels.matmul import matmul
from kernels.moe import grouped_matmul, grouped_matmul_reference
from kernels.moe_align import moe_align
from kernels.norms import rms_norm, rms_norm_reference
from kernels.registry import all_specs
from kernels.spec import KernelConfig
from kernels.tuning_file import describe, parse
from tests.kernels.conftest import DEVICE

WARPS_2 = KernelConfig({"BLOCK": 64}, 2, 1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of the test's own, read anew; afterwards nothing of it is left in the launchers."""
    monkeypatch.setenv("INFRA_LAB_CACHE", str(tmp_path))
    tuned.forget()
    yield tmp_path / "tuning"
    tuned.forget()


def launched(call: Callable[[], object]) -> list[tuple[str, KernelConfig]]:
    with tuned.watch() as seen:
        call()
    return [(question.tunable.name, config) for question, config in seen.given.items()]


def fake_timer(seconds: Callable[[KernelConfig], float]) -> Callable[[Callable[[KernelConfig], object]], tuning.Bench]:
    """Launches each config once, as a real timer would, and says how long the test wants it to have taken."""

    def timer(launch: Callable[[KernelConfig], object]) -> tuning.Bench:
        def bench(config: KernelConfig) -> float:
            launch(config)
            return seconds(config)

        return bench

    return timer


def test_a_launcher_takes_what_was_fastest() -> None:
    x, weight = torch.randn(5, 60, device=DEVICE), torch.randn(60, device=DEVICE)
    (before,) = launched(lambda: rms_norm(x, weight, 1e-5))
    assert before == ("rms_norm", KernelConfig({"BLOCK": 64}, 1, 1))
    best = tuning.tune_launches(
        lambda: rms_norm(x, weight, 1e-5), timer=fake_timer(lambda config: abs(config.num_warps - 16))
    )
    assert list(best.values()) == [KernelConfig({"BLOCK": 64}, 16, 1)]
    y = rms_norm(x, weight, 1e-5)
    assert launched(lambda: rms_norm(x, weight, 1e-5)) == [("rms_norm", KernelConfig({"BLOCK": 64}, 16, 1))]
    torch.testing.assert_close(y, rms_norm_reference(x, weight, 1e-5))
    assert launched(lambda: rms_norm(x[:2], weight, 1e-5)) == [before], "2 rows are of another bucket than 5"
    assert launched(lambda: rms_norm(torch.cat([x, x[:3]]), weight, 1e-5))[0][1].num_warps == 16, (
        "8 rows are of the same"
    )


def test_a_tile_decides_which_product_runs() -> None:
    a, b = torch.randn(40, 64, device=DEVICE), torch.randn(64, 72, device=DEVICE)
    tile = KernelConfig({"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP": 2}, 4, 2)
    wider = {"matmul": [triton.Config(dict(tile.blocks), num_warps=4, num_stages=2)]}
    seconds = fake_timer(lambda config: float(config.blocks != tile.blocks))
    tuning.tune_launches(lambda: matmul(a, b), more=wider, timer=seconds)
    assert launched(lambda: matmul(a, b)) == [("matmul", tile)]
    torch.testing.assert_close(matmul(a, b), a @ b)


def test_what_the_shape_decides_is_not_tuned(folder: Path) -> None:
    """Programs of 16 rows for blocks of 32 slots would leave half of them out."""
    x, weight = torch.randn(50, 32, device=DEVICE), torch.randn(2, 24, 32, device=DEVICE)
    alignment = moe_align(torch.arange(50, device=DEVICE)[:, None] % 2, 2, 32)
    expected = grouped_matmul_reference(x, weight, alignment, 1)

    def call() -> torch.Tensor:
        y: torch.Tensor = grouped_matmul(x, weight, *alignment, 1)
        return y

    (best,) = tuning.tune_launches(call, timer=fake_timer(lambda config: config.blocks["BLOCK_N"])).values()
    assert best.blocks["BLOCK_M"] == 32
    torch.testing.assert_close(call(), expected)

    def lower(content: dict[str, Any]) -> None:  # as somebody might who edits the file
        (times,) = content["seconds"].values()
        times["BLOCK_K=64 BLOCK_M=16 BLOCK_N=64 GROUP=8 warps=4 stages=3"] = 0.0

    rewrite(folder, lower)
    with pytest.warns(UserWarning, match=r"needs \{'BLOCK_M': 32\}"):
        torch.testing.assert_close(call(), expected)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    (path,) = folder.iterdir()
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    tuned.forget()


def as_measured(folder: Path, x: torch.Tensor) -> None:
    tuning.tune_launches(lambda: silu_mul(x), timer=fake_timer(lambda config: config.blocks["BLOCK"]))
    assert launched(lambda: silu_mul(x))[0][1].blocks == {"BLOCK": 512}
    assert len(list(folder.iterdir())) == 1


def test_a_stale_file_and_unknown_blocks_are_ignored_with_a_warning(folder: Path) -> None:
    x = torch.randn(3, 80, device=DEVICE)
    as_measured(folder, x)

    def of_old_source(content: dict[str, Any]) -> None:
        content["source"] = "0"

    def with_other_blocks(content: dict[str, Any]) -> None:
        (times,) = content["seconds"].values()
        times.clear()
        times.update(
            {
                "SIZE=8 warps=4 stages=1": 0.1,
                "fast": 0.2,
                "BLOCK=2048 warps=8 stages=1": 0.3,
                "BLOCK=64 warps=1 stages=1": None,
            }
        )

    rewrite(folder, of_old_source)
    with pytest.warns(UserWarning, match=r"stale \(source changed\), so its configs are not used"):
        assert launched(lambda: silu_mul(x))[0][1].blocks == {"BLOCK": 1024}
    tuned.forget()
    (path,) = folder.iterdir()
    path.unlink()
    as_measured(folder, x)
    rewrite(folder, with_other_blocks)
    with pytest.warns(UserWarning, match="has the blocks BLOCK|is ignored"):
        assert launched(lambda: silu_mul(x)) == [("act_mul", KernelConfig({"BLOCK": 2048}, 8, 1))]
    torch.testing.assert_close(silu_mul(x), silu_mul_reference(x))


def test_files_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 80, device=DEVICE)
    as_measured(folder, x)
    silu_mul(x)
    monkeypatch.setattr(tuned, "read", lambda *_, **__: pytest.fail("the file was read again"))
    silu_mul(x)
    folder.rename(folder.with_name("gone"))
    assert launched(lambda: silu_mul(x))[0][1].blocks == {"BLOCK": 512}
    tuned.forget()
    assert launched(lambda: silu_mul(x))[0][1].blocks == {"BLOCK": 1024}, "without a folder nothing is looked for"


class Spy:
    """A kernel that notes the options it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.options: list[dict[str, Any]] = []

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        def launch(*arguments: Any, **options: Any) -> Any:
            self.options.append(options)
            return self.kernel[grid](*arguments, **options)

        return launch


def test_the_kernel_is_launched_with_it_when_nobody_watches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 80, device=DEVICE)
    as_measured(folder, x)
    spy = Spy(activations._act_mul)
    monkeypatch.setattr(activations, "_act_mul", spy)
    silu_mul(x)
    silu_mul(x[:, :40])
    assert [(options["BLOCK"], options["num_warps"]) for options in spy.options] == [(512, 2), (1024, 4)]


@given(st.integers(1, 1 << 20))
def test_a_bucket_is_the_next_power_of_two(size: int) -> None:
    found = tuned.bucket(size)
    assert found & (found - 1) == 0
    assert found // 2 < size <= found


def test_every_config_is_what_its_line_says() -> None:
    for spec in all_specs().values():
        assert [parse(describe(config)) for config in spec.configs] == list(spec.configs)
    for text in ("", "warps=4", "stages=1 warps=2", "BLOCK=x warps=1 stages=1", "BLOCK warps=1 stages=1"):
        with pytest.raises(ValueError, match="is no config"):
            parse(text)
