"""`StepPlayer`: recorded steps, one after the other, with the KV pool as it was at the end of each."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from infra_lab.engine.recorder import StepRecord
from infra_lab.widgets.announcer import Announcer
from infra_lab.widgets.bundle import bundle
from infra_lab.widgets.figures.kv_block_map import block_at, kv_block_map
from infra_lab.widgets.figures.step_timeline import cursor, step_timeline
from infra_lab.widgets.live_figure import LiveFigure
from infra_lab.widgets.panel_view import box, root, title_widget
from infra_lab.widgets.step_text import Decoder, describe_block, describe_step, rows_to_html

_PLAY_INTERVAL_MS = 250


class StepPlayer:
    """A slider over the steps, the timeline with a cursor at it, and the block map, if the records carry `kv_map`.

    A click on a block, or its number in the field, shows what lies in it; with a tokenizer also as text. `load` puts other
    records in the same place: `panel.on_result(player.load)` keeps it in step with a LiveTuner whose result is the records.

    `.slider`, `.block` (the controls), `.timeline`, `.map` (FigureWidgets), `.record` (the step shown), `.widget`.
    """

    def __init__(
        self, steps: Sequence[StepRecord] = (), tokenizer: Decoder | None = None, *, title: str = "Step by step"
    ) -> None:
        self.title = title
        self._tokenizer = tokenizer
        self._steps: list[StepRecord] = []
        self._numbers: list[int] = []
        self._is_loading = False
        self._clickable: Any = None
        self._timeline, self._map = LiveFigure(), LiveFigure()
        wide = {"width": "auto", "flex": "1 1 300px"}
        self.slider = widgets.IntSlider(description="Step", tooltip="Which step to look at", layout=wide)
        self.play = widgets.Play(interval=_PLAY_INTERVAL_MS, show_repeat=False, tooltip="Play the steps")
        widgets.jslink((self.play, "value"), (self.slider, "value"))
        self.block = widgets.BoundedIntText(description="Block", min=0, max=0, tooltip="Which block to look into")
        self.details = widgets.HTML()
        self._text = Announcer()
        self._pool = box([self._map.widget, widgets.VBox([self.block, self.details])], "infra-lab-pool")
        self.slider.observe(self._on_step, names="value")
        self.block.observe(self._on_block, names="value")
        self.widget = root(
            [
                title_widget(title),
                box([self.play, self.slider], "infra-lab-player"),
                self._text,
                self._timeline.widget,
                self._pool,
            ]
        )
        self.load(steps)

    @property
    def timeline(self) -> Any:
        """The FigureWidget of the steps."""
        return self._timeline.widget

    @property
    def map(self) -> Any:
        """The FigureWidget of the blocks."""
        return self._map.widget

    @property
    def record(self) -> StepRecord | None:
        """The record of the step that is shown; None without records."""
        if not self._steps:
            return None
        return self._steps[max(bisect_right(self._numbers, self.slider.value) - 1, 0)]

    def load(self, steps: Sequence[StepRecord]) -> None:
        """Show other records, oldest first: the same step again if they have it, otherwise the one with the most blocks."""
        before = self.record
        self._steps, self._numbers = list(steps), [record.step for record in steps]
        first, last = (self._numbers[0], self._numbers[-1]) if steps else (0, 0)
        wanted = before.step if before is not None else -1
        if steps and wanted not in self._numbers:
            wanted = max(steps, key=lambda record: record.used_blocks).step
        self._is_loading = True
        try:
            for control in (self.play, self.slider):
                control.min, control.max = min(first, control.min), max(last, control.max)
                control.value = max(wanted, 0)
                control.min, control.max = first, last
            kv_map = self.record.kv_map if self.record is not None else None
            self.block.max = len(kv_map.blocks) - 1 if kv_map is not None else 0
        finally:
            self._is_loading = False
        self._timeline.show(step_timeline(self._steps))
        self._show_step()

    def _on_step(self, _: Any) -> None:
        if not self._is_loading and self._steps:
            self._show_step()

    def _on_block(self, _: Any) -> None:
        if not self._is_loading:
            self._show_pool()

    def _on_click(self, _: Any, points: Any, __: Any) -> None:
        record = self.record
        if record is None or record.kv_map is None or not points.xs:
            return
        block = block_at(points.xs[0], points.ys[0], len(record.kv_map.blocks))
        if block is not None:
            self.block.value = block

    def _show_step(self) -> None:
        record = self.record
        self._text.text = describe_step(record) if record is not None else "No steps recorded."
        if record is None:
            self._timeline.point_at(None)
        else:
            self._timeline.point_at(record.step + 0.5, cursor(record.step, self._numbers[-1]))
        self._show_pool()

    def _show_pool(self) -> None:
        record = self.record
        kv_map = record.kv_map if record is not None else None
        self._pool.layout.display = "none" if kv_map is None else ""
        if record is None or kv_map is None:
            return
        copied = [copy.destination for copy in record.copies]
        self._map.show(kv_block_map(kv_map, selected=self.block.value, highlight=copied))
        self.details.value = rows_to_html(describe_block(kv_map, self.block.value, self._tokenizer))
        if self._clickable is not self._map.widget.data[0]:
            self._clickable = self._map.widget.data[0]
            self._clickable.on_click(self._on_click)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        record = self.record
        lines = [self.title, str(self._text.text)]
        figures = [self._timeline] if self._steps else []
        if record is not None and record.kv_map is not None:
            figures.append(self._map)
            lines += [
                f"{term}: {text}" for term, text in describe_block(record.kv_map, self.block.value, self._tokenizer)
            ]
        return bundle(self.widget, figures, "\n".join(lines))
