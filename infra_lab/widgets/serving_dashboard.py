"""`ServingDashboard`: load on a running server under your finger, and what becomes of latency, queue and KV memory."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np

from infra_lab.errors import ConfigError
from infra_lab.widgets.announcer import Announcer
from infra_lab.widgets.bundle import bundle
from infra_lab.widgets.controls import build_control
from infra_lab.widgets.figures.serving import serving
from infra_lab.widgets.generation_view import printable_html
from infra_lab.widgets.knobs import Knob
from infra_lab.widgets.live_figure import LiveFigure
from infra_lab.widgets.panel_view import box, button, root, title_widget
from infra_lab.widgets.serving_traffic import Exchange, ServingSnapshot, Traffic

_DRAW_EVERY_S = 0.3
_SHOWN_CHARACTERS = 96


class ServingDashboard:
    """Sends requests to the OpenAI-compatible server at `url`, open-loop, and draws what comes of them.

    Start and Stop, or `run_for`; the sliders work at once. It stops by itself after `stop_after_s`. `.snapshot` is what is
    shown, `.figure` the FigureWidget. Nothing is sent before Start, and nothing is left open after Stop.
    """

    def __init__(
        self,
        url: str,
        prompts: Sequence[str],
        *,
        model: str = "tiny",
        rate: float = 4.0,
        max_rate: float = 40.0,
        max_tokens: int = 48,
        stop_after_s: float = 120.0,
        title: str = "A server under load",
        seed: int = 0,
    ) -> None:
        if not prompts:
            raise ConfigError("no prompts were given; the dashboard needs at least one to send")
        self.title, self._stop_after_s = title, stop_after_s
        self.traffic = Traffic(url, model, tuple(prompts), seed=seed)
        self._knobs = {
            knob.name: knob
            for knob in (
                Knob("rate", rate, "Load", "requests/s", "Arrivals, whatever the server does", 0.0, max_rate, 0.5, False, ()),
                Knob("max_tokens", max_tokens, "Output", "tokens", "Of each new request", 1, 256, 1, False, ()),
                Knob("chunk_tokens", 1, "An event has", "tokens", "At least, of new requests", None, None, None, False,
                     (1, 2, 4, 8, 16, 32)),
            )
        }  # fmt: skip
        self.controls = {name: build_control(knob) for name, knob in self._knobs.items()}
        for name, control in self.controls.items():
            control.observe(lambda change, name=name: setattr(self.traffic, name, change["new"]), names="value")
            setattr(self.traffic, name, control.value)
        self._live = LiveFigure()
        self._drawer: threading.Thread | None = None
        self._stopping = threading.Event()
        self._build()
        self._show()

    @property
    def figure(self) -> Any:
        """The FigureWidget: one object for the dashboard's whole life."""
        return self._live.widget

    @property
    def summary(self) -> str:
        """The figures in words."""
        return str(self._status.text)

    def set(self, **changes: Any) -> None:
        """Move sliders: rate, max_tokens, chunk_tokens. Raises ConfigError for another name or an impossible value."""
        for name in changes:
            if name not in self._knobs:
                raise ConfigError(f"there is no slider {name!r}; the dashboard has {', '.join(self._knobs)}")
        for name, value in {name: self._knobs[name].check(value) for name, value in changes.items()}.items():
            self.controls[name].value = value

    def start(self) -> None:
        """Begin to send."""
        if self._drawer is not None and self._drawer.is_alive():
            return
        self._stopping.clear()
        self.start_button.disabled, self.stop_button.disabled = True, False
        self._status.text = "Running; the figures follow."
        self.traffic.start()
        self._drawer = threading.Thread(target=self._draw_until_stopped, name="infra-lab-dashboard", daemon=True)
        self._drawer.start()

    def stop(self) -> None:
        """Send no more; what was seen stays."""
        self._stopping.set()
        if self._drawer is not None:
            self._drawer.join()

    def run_for(self, seconds: float, **changes: Any) -> ServingSnapshot:
        """Move sliders, send for so long, stop, and return what was seen."""
        self.set(**changes)
        self.start()
        self._stopping.wait(seconds)
        self.stop()
        return self.snapshot

    def _draw_until_stopped(self) -> None:
        end_s = time.monotonic() + self._stop_after_s
        while not self._stopping.wait(_DRAW_EVERY_S) and time.monotonic() < end_s:
            self._show()
        self.traffic.stop()
        self._show()
        self._status.text = _words(self.snapshot)  # said once, at the end: a screen reader reads it out
        self.start_button.disabled, self.stop_button.disabled = False, True

    def _show(self) -> None:
        self.snapshot = self.traffic.snapshot()
        self._live.show(serving(self.snapshot))
        streams = "".join(map(_stream_html, self.snapshot.streams)) or "Press Start: the latest streams appear here."
        self._streams.value = (
            f'<div aria-label="latest streams" style="font-family:var(--jp-code-font-family);font-size:12px;'
            f'line-height:1.6;min-height:6.6em;color:var(--jp-ui-font-color1)">{streams}</div>'
        )

    def _build(self) -> None:
        self._status, self._streams = Announcer("Nothing was sent yet."), widgets.HTML()
        self.start_button = button("Start", "Begin to send requests", self.start)
        self.stop_button = button("Stop", "Send no more, and drop what is open", self.stop)
        self.stop_button.disabled = True
        self.widget = root(
            [
                title_widget(self.title),
                box(self.controls.values(), "infra-lab-controls"),
                box([self.start_button, self.stop_button], "infra-lab-actions"),
                self._status,
                self._streams,
                self._live.widget,
            ]
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return bundle(self.widget, [self._live], f"{self.title}\n{self.summary}")


def _words(snapshot: ServingSnapshot) -> str:
    said = (
        f"{snapshot.num_sent} requests sent, {snapshot.num_finished} finished, {snapshot.num_failed} dropped or failed."
    )
    for name, seconds in (("first event", snapshot.ttft_s), ("between events", snapshot.itl_s)):
        if seconds:
            middle, high = np.percentile(seconds, (50, 99)) * 1e3
            said += f" {name.capitalize()}: {middle:.3g} ms at the median, {high:.3g} ms at p99."
    if snapshot.gauges:
        said += (
            f" At most {max(gauge.running for gauge in snapshot.gauges):.0f} ran and "
            f"{max(gauge.waiting for gauge in snapshot.gauges):.0f} waited; KV up to "
            f"{max(gauge.kv_usage for gauge in snapshot.gauges):.0%}."
        )
    return said


def _stream_html(exchange: Exchange) -> str:
    text = printable_html(exchange.text.replace("\n", "↵")[-_SHOWN_CHARACTERS:])
    state = {None: "…", "length": "✓", "stop": "✓"}.get(exchange.finish_reason, "✗")
    return (
        f'<div style="white-space:pre;overflow:hidden;text-overflow:ellipsis">'
        f'<span style="color:var(--jp-ui-font-color2)">{exchange.number:4} {state} </span>{text}</div>'
    )
