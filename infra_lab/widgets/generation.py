"""`GenerationPanel`: the real engine writes, token by token, beside the physical limit of what it does.

A decode step reads every weight once, so a model's speed in tokens per second is a bandwidth: model bytes × tokens/s. The panel
holds that against what this machine's memory delivers.
"""

import time
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from infra_lab.engine.llm import LLM
from infra_lab.errors import InfraLabError
from infra_lab.hardware.probes import cached_ceilings
from infra_lab.sampling_params import SamplingParams
from infra_lab.widgets.announcer import Announcer
from infra_lab.widgets.bundle import bundle
from infra_lab.widgets.controls import build_control
from infra_lab.widgets.figures.step_times import step_times
from infra_lab.widgets.generation_run import Generation, GenerationSettings, shared_engine, split_available
from infra_lab.widgets.generation_view import GENERATION_CSS, printable_html, speed_html, tokens_html
from infra_lab.widgets.knobs import Knob, knobs_of
from infra_lab.widgets.latest_wins import LatestWins, Ticket
from infra_lab.widgets.live_figure import LiveFigure
from infra_lab.widgets.panel_view import box, button, root, title_widget

_UPDATE_EVERY_S = 0.05


class GenerationPanel:
    """Streams what a model writes, with its speed beside the machine's limit and, afterwards, what each step took.

    models: names or paths as `LLM` takes them; those that are not on this machine are named with what to do about it. Raises
    ModelNotFoundError if none of them is. Generation runs on a thread of its own, so that the kernel stays free; Stop ends it
    between two steps and frees its blocks, and a new Generate does the same to the one before.

    `.generation` is the newest run, `.error` what it raised, `.figure` the FigureWidget of its steps.
    """

    def __init__(
        self,
        models: Sequence[str] = ("tiny", "smollm2-135m"),
        *,
        prompt: str = "What is json.dumps?",
        title: str = "Generate",
        **defaults: Any,
    ) -> None:
        self.title = title
        self.generation: Generation | None = None
        self.error: Exception | None = None
        available, missing = split_available(models)
        model = Knob("model", available[0], "Model", "", "What writes", None, None, None, False, tuple(available))
        knobs = knobs_of(GenerationSettings)
        defaults = {entry.name: entry.check(defaults.pop(entry.name, entry.default)) for entry in knobs} | defaults
        start = GenerationSettings(model.default, prompt, **defaults)
        self.controls: dict[str, Any] = {"model": build_control(model), "prompt": _prompt_box(prompt)}
        for entry in knobs:
            self.controls[entry.name] = build_control(entry)
            self.controls[entry.name].value = getattr(start, entry.name)
        self.show_tokens = widgets.Checkbox(
            description="Show tokens", indent=False, layout={"width": "auto"}, tooltip="Mark where each token ends"
        )
        self.show_tokens.observe(lambda _: self._show_text(), names="value")
        self._worker: LatestWins[GenerationSettings] = LatestWins(self._work, self._on_idle)
        self._live = LiveFigure()
        self._live.show(step_times([], 0.0))
        self._build(missing)
        self._show_text()

    @property
    def figure(self) -> Any:
        """The FigureWidget: one object for the panel's whole life."""
        return self._live.widget

    @property
    def llm(self) -> LLM:
        """The engine of the chosen model, loaded now if it was not used yet; shared by all panels."""
        return shared_engine(str(self.controls["model"].value)).llm

    @property
    def summary(self) -> str:
        """What the panel says about the newest run."""
        return str(self._status.text)

    def run(self, *, wait: bool = False, timeout_s: float = 120.0) -> None:
        """Do what Generate does; with `wait`, return at the end and raise what it raised, or TimeoutError."""
        self.error = None
        self._message.text = ""
        self.generate_button.description, self.stop_button.disabled = "Generate again", False
        self._worker.submit(GenerationSettings(**{name: control.value for name, control in self.controls.items()}))
        if wait:
            self.wait(timeout_s)

    def stop(self) -> None:
        """End the run between two steps; what it wrote stays."""
        self._worker.stop()

    def wait(self, timeout_s: float = 120.0) -> None:
        """Return when nothing is generated any more. Raises what the newest run raised, and TimeoutError."""
        self._worker.wait(timeout_s)
        if self.error is not None:
            raise self.error

    def _build(self, missing: str) -> None:
        self._status, self._message = Announcer("Press Generate."), Announcer(tone="error")
        self._text, self._speed = widgets.HTML(), widgets.HTML()
        self.generate_button = button("Generate", "Let the model write", self.run)
        self.generate_button.add_class("infra-lab-primary")
        self.stop_button = button("Stop", "End it after this step and free its blocks", self.stop)
        self.stop_button.disabled = True
        prompt, others = self.controls["prompt"], [c for name, c in self.controls.items() if name != "prompt"]
        self.widget = root(
            [
                widgets.HTML(f"<style>{GENERATION_CSS}</style>", layout={"display": "none"}),
                title_widget(self.title),
                prompt,
                box(others, "infra-lab-controls"),
                Announcer(missing, tone="note"),
                box([self.generate_button, self.stop_button, self.show_tokens], "infra-lab-actions"),
                self._message,
                self._text,
                self._speed,
                self._status,
                self._live.widget,
            ]
        )

    # ---- on the worker's thread ----

    def _work(self, settings: GenerationSettings, ticket: Ticket) -> None:
        try:
            self._generate(settings, ticket)
        except Exception as error:  # noqa: BLE001 - shown in the panel, and raised by `wait`
            self.error = error
            name = "" if isinstance(error, InfraLabError) else f"{type(error).__name__}: "
            self._message.text, self._status.text = f"{name}{error}", "Nothing more was generated."

    def _generate(self, settings: GenerationSettings, ticket: Ticket) -> None:
        self._status.text = f"Loading {settings.model} …"
        engine = shared_engine(settings.model)
        llm = engine.llm
        ceiling = cached_ceilings(str(llm.resolved.device)).read_bytes_per_s
        is_chat = settings.as_chat and llm.tokenizer.chat_template is not None
        run = Generation(settings, llm.weight_bytes, ceiling, is_chat)
        self.generation = run
        self._show(run)
        self._live.show(step_times([], 0.0))  # the last run's steps are not this one's
        self._status.text = f"{settings.model} is writing …"
        with engine.lock:  # another panel may be writing with the same model
            self._stream(run, llm, ticket)
        self._show(run)
        self._live.show(step_times(run.steps, run.weight_bytes / run.read_bytes_per_s))
        self._status.text = run.summary

    def _stream(self, run: Generation, llm: LLM, ticket: Ticket) -> None:
        settings, shown_s = run.settings, 0.0
        message = {"role": "user", "content": settings.prompt}
        prompt = llm.chat_token_ids([message]) if run.is_chat else llm.encode(settings.prompt)
        llm.recorder.clear()
        stream = llm.stream(prompt, SamplingParams(max_tokens=settings.max_tokens, temperature=settings.temperature))
        try:
            for delta in stream:
                run.add(delta)
                if ticket.is_cancelled:
                    break
                if time.monotonic() - shown_s >= _UPDATE_EVERY_S:
                    shown_s = time.monotonic()
                    self._show(run)
        finally:
            stream.close()  # type: ignore[attr-defined]  # a generator; closing it ends the request and frees its blocks
        run.finish_reason = run.finish_reason or "abort"
        run.steps = llm.recorder.steps

    def _on_idle(self) -> None:
        self.stop_button.disabled = True

    # ---- what is seen ----

    def _show(self, run: Generation) -> None:
        self._show_text()
        self._speed.value = speed_html(run)

    def _show_text(self) -> None:
        run = self.generation
        if run is None:
            inner = '<span class="infra-lab-prompt">What the model writes appears here.</span>'
        else:
            prompt = (
                "" if run.is_chat else f'<span class="infra-lab-prompt">{printable_html(run.settings.prompt)}</span>'
            )
            written = printable_html(run.text)
            if self.show_tokens.value:
                written = tokens_html(run.token_ids, shared_engine(run.settings.model).llm.tokenizer)
            inner = prompt + written
        self._text.value = (
            f'<div class="infra-lab-stream" tabindex="0" aria-label="generated text"><div>{inner}</div></div>'
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        run = self.generation
        lines = [self.title, self.summary, str(self._message.text)]
        if run is not None:
            lines[1:1] = [f"prompt: {run.settings.prompt!r}", f"text: {run.text!r}"]
        return bundle(self.widget, [self._live], "\n".join(line for line in lines if line))


def _prompt_box(prompt: str) -> Any:
    made = widgets.Textarea(
        prompt, description="Prompt", rows=2, tooltip="What the model goes on from", layout={"width": "auto"}
    )
    made.style.description_width = "initial"
    made.add_class("infra-lab-prompt-box")
    return made
