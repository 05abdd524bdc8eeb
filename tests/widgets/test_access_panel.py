"""What the panel shows of a kernel is what its formula needs: every program its tile, every element as often as it must."""

import numpy as np
import pytest

from infra_lab.errors import ConfigError
from infra_lab.widgets.access_panel import access_panel, watch
from kernels.demos import DEMOS


def test_a_matmuls_program_reads_a_row_of_tiles_and_a_column_and_writes_one() -> None:
    watched = watch("matmul")
    (m, k), (_, n) = watched.shapes["a"], watched.shapes["b"]
    assert len(watched.programs) == (m // 32) * (n // 32)
    for program in range(len(watched.programs)):
        a, b = watched.loads["a"][program].reshape(m, k), watched.loads["b"][program].reshape(k, n)
        out = watched.stores["out"][program].reshape(m, n)
        rows, columns = a.any(axis=1), b.any(axis=0)
        assert (rows.sum(), columns.sum()) == (32, 32)
        assert np.array_equal(out > 0, np.outer(rows, columns))
    assert (watched.loads["a"].sum(axis=0) == n // 32).all(), "once for each column of tiles"
    assert (watched.loads["b"].sum(axis=0) == m // 32).all()
    assert (watched.stores["out"].sum(axis=0) == 1).all()


@pytest.mark.parametrize("name", DEMOS)
def test_every_element_of_the_result_is_stored_once(name: str) -> None:
    watched = watch(name)
    assert (watched.stores["out"].sum(axis=0) == 1).all()
    assert all(not stores.any() for tensor, stores in watched.stores.items() if tensor != "out")


def test_a_process_that_does_not_interpret_asks_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    here = watch("rms_norm")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    watch.cache_clear()
    there = watch("rms_norm")
    assert (there.shapes, there.programs) == (here.shapes, here.programs)
    assert all(np.array_equal(there.loads[name], here.loads[name]) for name in here.loads)


def test_the_panel_follows_its_knobs() -> None:
    panel = access_panel("rms_norm")
    assert "Loaded: 80 elements. Stored: 40." in panel.summary
    panel.set(program=3)
    out = next(trace for trace in panel.figure.data if trace.name == "out")
    assert np.flatnonzero((np.asarray(out.z) < 0).any(axis=1)).tolist() == [3]
    panel.set(together=True)
    weight = next(trace for trace in panel.figure.data if trace.name == "weight")
    assert (np.asarray(weight.customdata) == 6).all(), "each row's program reads the weight"


def test_a_demo_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no demo 'fft'.*matmul"):
        access_panel("fft")
