"""`LiveTuner`: a dataclass of knobs, a pure computation and a pure drawing, kept in step with each other."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from threading import RLock
from typing import Any, Generic, TypeVar

from infra_lab.errors import ConfigError, InfraLabError
from infra_lab.widgets.announcer import Announcer
from infra_lab.widgets.bundle import bundle
from infra_lab.widgets.controls import build_control, read_control
from infra_lab.widgets.ghosts import ghosts_of
from infra_lab.widgets.knobs import knobs_of
from infra_lab.widgets.latest_wins import LatestWins, Ticket
from infra_lab.widgets.live_figure import LiveFigure
from infra_lab.widgets.panel_view import ProgressRow, box, button, root, title_widget

P = TypeVar("P")
R = TypeVar("R")

Progress = Callable[..., None]
"""`progress(fraction, text="")`: what a slow computation calls; it does not return once its result is not wanted any more."""

_PROGRESS_EVERY_S = 0.05
_FOLLOW_S = 0.4
"""How long a knob rests before what only follows the panel is drawn too: until then the browser belongs to the panel."""


class LiveTuner(Generic[P, R]):
    """A panel: turn a knob, see what the computation makes of it.

    params_type: a frozen dataclass whose fields are made by `knob`. compute: params → result. draw: result → `go.Figure`.
    summarize: result → one or a few sentences of plain text. All three are pure. presets: name → params.

    With `slow=True`, `compute(params, progress)` runs on a thread of its own: a newer change or Stop ends it at its next
    call of `progress(fraction, text="")`, and only the newest change is computed. Otherwise every change is computed at once.
    `slow` may also say so of the params: then those that are not slow are computed at once, and end a slow run.

    `.params`, `.result` and `.figure` belong together: they are those of the run that is shown. After an error they stay,
    `.error` holds it, and the panel shows its message. The constructor raises what compute, draw or summarize raise (with
    `slow`, `wait` does), and ConfigError for knobs or presets that contradict themselves.
    """

    def __init__(
        self,
        params_type: type[P],
        compute: Callable[..., R],
        draw: Callable[[R], Any],
        *,
        summarize: Callable[[R], str] | None = None,
        title: str = "",
        presets: Mapping[str, P] | None = None,
        slow: bool | Callable[[P], bool] = False,
    ) -> None:
        self._compute, self._draw, self._summarize = compute, draw, summarize
        self._knobs = {knob.name: knob for knob in knobs_of(params_type)}
        self._base = params_type()
        self._presets = {name: self._checked_preset(name, params) for name, params in (presets or {}).items()}
        self._live = LiveFigure()
        self._lock = RLock()
        self._is_muted = False
        self._pinned: tuple[tuple[dict[str, Any], ...], str] | None = None
        self._picture: Any = None
        self._listeners: list[Callable[[R], object]] = []
        self._rest: asyncio.TimerHandle | None = None
        self._worker: LatestWins[P] | None = LatestWins(self._work, self._on_idle) if slow else None
        self._is_slow: Callable[[P], bool] = slow if callable(slow) else lambda _: bool(slow)
        self._is_in_background = False
        self.title = title
        self.params: P = self._base
        self.result: R | None = None
        self.error: Exception | None = None
        self.controls = {name: build_control(knob) for name, knob in self._knobs.items()}
        for control in self.controls.values():
            control.observe(self._on_control, names="value")
        self._build()
        self._recompute()
        self._raise_unless_in_background()

    @property
    def figure(self) -> Any:
        """The FigureWidget: one object for the panel's whole life."""
        return self._live.widget

    @property
    def summary(self) -> str:
        """What `summarize` said about the result that is shown."""
        return str(self._summary.text)

    def set(self, **changes: Any) -> None:
        """Turn several knobs, with one computation. With `slow`, returns before it has ended.

        Raises ConfigError for a name or a value that there is none of, with nothing changed, and what the computation raised.
        """
        for name in changes:
            if name not in self._knobs:
                raise ConfigError(f"there is no knob {name!r}; this panel has {', '.join(self._knobs)}")
        checked = {name: self._knobs[name].check(value) for name, value in changes.items()}
        self._turn(checked)
        self._raise_unless_in_background()

    def reset(self) -> None:
        """Turn all knobs back to their defaults."""
        self.set(**{name: knob.default for name, knob in self._knobs.items()})

    def pin(self) -> None:
        """Keep the present run in sight: its traces pale under the live ones, its summary above the live one."""
        if self._picture is None:
            return
        with self._lock:
            self._pinned = (ghosts_of(self._picture), f"Pinned: {self._settings()}. {self.summary}")
            self._show()

    def unpin(self) -> None:
        """Let go of the pinned run; without one, nothing happens."""
        with self._lock:
            self._pinned = None
            self._show()

    def on_result(self, listener: Callable[[R], object]) -> None:
        """Call `listener(result)` now, and after each change that was computed: `panel.on_result(player.load)`.

        While the reader moves a knob, listeners wait until it rests.
        """
        self._listeners.append(listener)
        if self._picture is not None:
            listener(self.result)  # type: ignore[arg-type]

    def wait(self, timeout_s: float = 60.0) -> None:
        """Return when the newest change is computed; at once in a panel that is not slow.

        Raises TimeoutError if that takes longer, and what the computation raised.
        """
        if self._worker is not None:
            self._worker.wait(timeout_s)
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """End a slow computation; the figure stays as it is."""
        if self._worker is not None:
            self._worker.stop()

    def _raise_unless_in_background(self) -> None:
        if not self._is_in_background and self.error is not None:
            raise self.error

    def _build(self) -> None:
        self._summary, self._pinned_summary = Announcer(), Announcer(tone="pinned")
        self._message = Announcer(tone="error")
        self._progress = ProgressRow(self.stop)
        self._unpin_button = button("Unpin", "Let go of the pinned run", self.unpin, quiet=True)
        self._buttons = {
            name: button(name, "Set the knobs to this example", lambda name=name: self._use_preset(name))  # type: ignore[misc]
            for name in self._presets
        }
        actions = [
            *self._buttons.values(),
            button("Reset", "Turn all knobs back", lambda: self._turn(self._defaults()), quiet=True),
            button("Pin this run", "Keep this run in sight while you turn the knobs", self.pin, quiet=True),
            self._unpin_button,
        ]
        self.widget = root(
            [
                title_widget(self.title),
                box(self.controls.values(), "infra-lab-controls"),
                box(actions, "infra-lab-actions"),
                self._progress.row,
                self._message,
                self._pinned_summary,
                self._summary,
                self._live.widget,
            ]
        )

    def _checked_preset(self, name: str, params: P) -> dict[str, Any]:
        given, wanted = type(params).__name__, type(self._base).__name__
        if given != wanted:
            raise ConfigError(f"preset {name!r} is a {given}; it must be a {wanted}")
        try:
            return {field: knob.check(getattr(params, field)) for field, knob in self._knobs.items()}
        except ConfigError as error:
            raise ConfigError(f"preset {name!r}: {error}") from None

    def _defaults(self) -> dict[str, Any]:
        return {name: knob.default for name, knob in self._knobs.items()}

    def _use_preset(self, name: str) -> None:
        self._turn({**self._defaults(), **self._presets[name]})

    def _turn(self, values: Mapping[str, Any]) -> None:
        with self._muted():
            for name, value in values.items():
                self.controls[name].value = value
        self._recompute()

    @contextmanager
    def _muted(self) -> Iterator[None]:
        self._is_muted = True
        try:
            yield
        finally:
            self._is_muted = False

    def _on_control(self, _: Any) -> None:
        if not self._is_muted:
            self._recompute(tell=self._tell_when_it_rests)

    def _recompute(self, tell: "Callable[[R], None] | None" = None) -> None:
        try:
            values = {name: read_control(knob, self.controls[name]) for name, knob in self._knobs.items()}
            params = replace(self._base, **values)  # type: ignore[type-var]
            self._is_in_background = self._is_slow(params)
            if not self._is_in_background:
                self.stop()
                self._evaluate(params, lambda: self._compute(params), tell=tell)
        except Exception as error:  # noqa: BLE001 - whatever the author's code raises is shown, not lost in a log
            self._fail(error)
            return
        if self._worker is not None and self._is_in_background:
            self._progress.show(0.0, "")
            self._progress.is_visible(True)
            self._worker.submit(params)

    def _work(self, params: P, ticket: Ticket) -> None:
        shown_s = 0.0

        def progress(fraction: float, text: str = "") -> None:
            nonlocal shown_s
            ticket.check()
            if time.monotonic() - shown_s >= _PROGRESS_EVERY_S:
                shown_s = time.monotonic()
                self._progress.show(fraction, text)

        try:
            self._evaluate(params, lambda: self._compute(params, progress), ticket)
        except Exception as error:  # noqa: BLE001 - whatever the author's code raises is shown, not lost in a log
            ticket.check()
            self._fail(error)

    def _on_idle(self) -> None:
        self._progress.is_visible(False)

    def _evaluate(
        self,
        params: P,
        compute: Callable[[], R],
        ticket: Ticket | None = None,
        tell: "Callable[[R], None] | None" = None,
    ) -> None:
        """Compute, draw and summarize, and only then show anything: an error in any of them changes nothing."""
        result = compute()
        picture = self._draw(result)
        summary = self._summarize(result) if self._summarize else ""
        with self._lock:
            if ticket is not None:
                ticket.check()
            self.params, self.result, self.error, self._picture = params, result, None, picture
            self._message.text = ""
            self._summary.text = summary
            self._show()
            if self._rest is not None:
                self._rest.cancel()
            (tell or self._tell)(result)

    def _tell(self, result: R) -> None:
        for listener in self._listeners:
            listener(result)

    def _tell_when_it_rests(self, result: R) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no notebook's kernel: nobody watches
            self._tell(result)
            return

        def tell() -> None:
            try:
                self._tell(result)
            except Exception as error:  # noqa: BLE001 - whatever the author's code raises is shown, not lost in a log
                self._fail(error)

        if self._listeners:
            self._rest = loop.call_later(_FOLLOW_S, tell)

    def _show(self) -> None:
        ghosts, text = self._pinned or ((), "")
        self._pinned_summary.text = text
        self._unpin_button.layout.display = "" if text else "none"
        if self._picture is not None:
            self._live.show(self._picture, beneath=ghosts)

    def _fail(self, error: Exception) -> None:
        self.error = error
        name = "" if isinstance(error, InfraLabError) else f"{type(error).__name__}: "
        self._message.text = f"{name}{error}"

    def _settings(self) -> str:
        shown = {name: getattr(self.params, name) for name in self._knobs}
        return ", ".join(
            f"{knob.label} {f'{shown[name]:g}' if isinstance(knob.default, float) else shown[name]}"
            f"{' ' * bool(knob.unit)}{knob.unit}"
            for name, knob in self._knobs.items()
        )

    def _text(self) -> str:
        lines = [self.title, self._settings(), str(self._pinned_summary.text), self.summary, str(self._message.text)]
        return "\n".join(line for line in lines if line)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return bundle(self.widget, [self._live] if self._picture is not None else [], self._text())
