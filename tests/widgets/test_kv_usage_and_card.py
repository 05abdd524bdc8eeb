"""The figure of where KV memory goes, against the records, and the card that any figure is shown in."""

import base64

import numpy as np
import pytest

from infra_lab import LLM, SamplingParams
from infra_lab.engine.recorder import StepRecord
from infra_lab.errors import ConfigError
from infra_lab.widgets import FigureCard, figures


def steps(keep: bool = True) -> list[StepRecord]:
    llm = LLM("tiny", dtype="float32", device="cpu", block_size=8, num_kv_blocks=24, max_num_seqs=4)
    llm.recorder.keep_kv_maps = keep
    params = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True)
    llm.generate(["The module defines", "Return a list", "A", "Raises ValueError", "import"], params)
    return llm.recorder.steps


def test_every_slot_is_counted_once() -> None:
    records = steps()
    stored, empty, cached, running, waiting = figures.kv_usage(records).data
    for i, record in enumerate(records):
        kv_map = record.kv_map
        assert kv_map is not None
        used = [block for block in kv_map.blocks if block.ref_count]
        assert stored.y[i] + empty.y[i] == 8 * len(used) == 8 * record.used_blocks
        assert stored.y[i] == sum(max(use.num_tokens for use in block.users) for block in used)
        assert stored.y[i] + empty.y[i] + cached.y[i] <= 8 * 24
        assert (empty.base[i], cached.base[i]) == (stored.y[i], stored.y[i] + empty.y[i])
    assert max(cached.y) > 0
    assert list(running.y[:-1]) == [record.num_running for record in records]
    assert max(waiting.y) == 1


def test_records_without_maps_are_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match="keep_kv_maps = True before the run"):
        figures.kv_usage(steps(keep=False))
    with pytest.raises(ConfigError, match="keep_kv_maps"):
        figures.kv_usage([])


def test_a_card_is_a_live_figure_a_picture_and_a_text() -> None:
    picture = figures.kv_usage(steps())
    card = FigureCard(picture, "Most slots hold a token.", title="KV memory")
    data = card._repr_mimebundle_()
    assert data["text/plain"] == "KV memory\nMost slots hold a token."
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in data
    assert np.array_equal(card.figure.data[0].y, picture.data[0].y)
