"""The player without a browser: slider and block field move, and figures and words follow."""

import base64
import io
from types import SimpleNamespace

import pytest
from PIL import Image

from infra_lab.engine.kv_map import BlockUse, BlockView, KVMap
from infra_lab.engine.recorder import StepRecord
from infra_lab.models.tokenizer import Tokenizer
from infra_lab.paged_kv.snapshot import BlockState
from infra_lab.widgets import StepPlayer
from infra_lab.widgets.figures.kv_block_map import num_columns
from infra_lab.widgets.step_text import describe_block, describe_step, rows_to_html


@pytest.fixture
def player(simulated_steps: list[StepRecord], tokenizer: Tokenizer) -> StepPlayer:
    return StepPlayer(simulated_steps, tokenizer)


def cow_step(steps: list[StepRecord]) -> StepRecord:
    return next(record for record in steps if record.copies)


def test_it_starts_where_the_pool_is_fullest(player: StepPlayer, simulated_steps: list[StepRecord]) -> None:
    assert player.record is not None
    assert player.record.used_blocks == max(record.used_blocks for record in simulated_steps)
    assert (player.slider.min, player.slider.max) == (simulated_steps[0].step, simulated_steps[-1].step)


def test_the_slider_moves_the_cursor_the_map_and_the_words(
    player: StepPlayer, simulated_steps: list[StepRecord]
) -> None:
    record = cow_step(simulated_steps)
    assert record.kv_map is not None
    player.slider.value = record.step
    assert player.record is record
    assert player.timeline._cursor == record.step + 0.5
    assert player._timeline.static().layout.shapes[1].x0 == record.step + 0.5
    assert f"block {record.copies[0].source} to {record.copies[0].destination}" in player._text.text
    assert len(player.map.data[4].x) == 6 * len(record.copies), "copied blocks are outlined"
    used = record.kv_map.count(BlockState.USED)
    assert any(f"in use {used}" in (trace.name or "") for trace in player.map.data)


def test_the_block_field_and_a_click_show_what_lies_in_a_block(
    player: StepPlayer, simulated_steps: list[StepRecord], tokenizer: Tokenizer
) -> None:
    record = cow_step(simulated_steps)
    assert record.kv_map is not None
    player.slider.value = record.step
    block = next(b for b, view in enumerate(record.kv_map.blocks) if view.ref_count > 1)
    player.block.value = block
    for use in record.kv_map.blocks[block].users:
        assert use.request_id in player.details.value
    assert f"shared by {record.kv_map.blocks[block].ref_count} requests" in player.details.value
    other = record.copies[0].destination
    columns = num_columns(len(record.kv_map.blocks))
    player._on_click(None, SimpleNamespace(xs=[other % columns], ys=[other // columns]), None)
    assert player.block.value == other
    assert tokenizer.decode(record.kv_map.blocks[other].token_ids) in player.details.value


def test_load_puts_other_records_in_place(
    player: StepPlayer, simulated_steps: list[StepRecord], tiny_steps: list[StepRecord]
) -> None:
    timeline = player.timeline
    player.slider.value = simulated_steps[3].step
    player.load(tiny_steps)
    assert player.timeline is timeline
    assert player.slider.max == tiny_steps[-1].step
    assert len(player.map.data[0].z) == tiny_steps[0].total_blocks
    assert player.block.max == tiny_steps[0].total_blocks - 1
    player.slider.value = tiny_steps[2].step
    player.load(simulated_steps)
    assert player.record is not None
    assert player.record.step == tiny_steps[2].step, "the same step, if there is one"
    player.load([])
    assert player.record is None
    assert player._text.text == "No steps recorded."
    player.load(simulated_steps[4:])
    assert player.slider.min == simulated_steps[4].step


def test_records_without_maps_hide_the_pool(simulated_steps: list[StepRecord]) -> None:
    from dataclasses import replace

    player = StepPlayer([replace(record, kv_map=None) for record in simulated_steps])
    assert player._pool.layout.display == "none"
    player.slider.value = simulated_steps[2].step
    assert "image/png" in player._repr_mimebundle_()
    player.load(simulated_steps)
    assert player._pool.layout.display == ""


def test_a_notebook_gets_both_pictures_and_the_words(player: StepPlayer) -> None:
    data = player._repr_mimebundle_()
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture.size == (900, player.timeline.layout.height + player.map.layout.height)
    assert data["text/plain"].startswith("Step by step\nStep ")
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == player.widget.model_id


def view(**changes: object) -> KVMap:
    block = BlockView(BlockState.USED, 1, (BlockUse("request-0", 0, 2),), (1, 2), False)
    return KVMap(4, (block._replace(**changes),), (0,) if changes.get("state") is BlockState.CACHED else ())


class Evil:
    """A tokenizer whose text is markup."""

    def decode(self, token_ids: object, *, skip_special_tokens: bool = True) -> str:
        return "</code><script>alert('&')</script>"


def test_token_text_and_request_ids_are_escaped() -> None:
    kv_map = view(users=(BlockUse("<img src=x>", 0, 2),))
    html = rows_to_html(describe_block(kv_map, 0, Evil()))
    assert "<script>" not in html
    assert "<img" not in html
    assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)" in html


def test_what_a_block_says_of_itself() -> None:
    users = (BlockUse("request-0", 0, 2), BlockUse("request-1", 0, 2))
    said = dict(describe_block(view(ref_count=2, users=users), 0))
    assert said["Sharing"].startswith("shared: copy-on-write happens when")
    said = dict(describe_block(view(ref_count=2, users=users, token_ids=(1, 2, 3, 4)), 0))
    assert said["Sharing"].startswith("shared and full")
    said = dict(describe_block(view(state=BlockState.CACHED, ref_count=0, users=(), is_matchable=True), 0))
    assert said["Eviction"] == "number 1 of 1, least recently used first"
    assert said["Prefix"] == "a later request with the same prefix finds it"
    assert said["Token ids"] == "1 2"
    assert dict(describe_block(view(state=BlockState.FREE, ref_count=0, users=(), token_ids=()), 0)) == {
        "Block": "0, free"
    }


def test_what_a_step_says_of_itself(simulated_steps: list[StepRecord]) -> None:
    for record in simulated_steps:
        text = describe_step(record)
        assert text.startswith(f"Step {record.step}: {record.num_decodes} decode")
        assert f"{record.used_blocks} of {record.total_blocks} blocks in use." in text
        assert all(f"Finished {ending.request_id} ({ending.reason})." in text for ending in record.finished)
        assert all(f"Preempted {name}" in text for name in record.preempted)
