"""`KernelExplorer`: turn a kernel's block sizes, warps and stages; see its code, its needs, and how fast it should be."""

import inspect
import re
from dataclasses import field, make_dataclass
from html import escape
from typing import Any

import ipywidgets as widgets

from infra_lab.errors import ConfigError
from infra_lab.widgets.bundle import bundle
from infra_lab.widgets.kernel_look import Look, draw, in_words
from infra_lab.widgets.knobs import knob
from infra_lab.widgets.live_tuner import LiveTuner, Progress
from infra_lab.widgets.panel_view import box, root, title_widget
from kernels.chips import CHIPS
from kernels.compile_worker import CompileWorker
from kernels.predict import predict
from kernels.registry import all_specs
from kernels.spec import KernelConfig, KernelSpec

STAGES = ("PTX", "SASS", "TTGIR", "TTIR")
_WORTH_SEEING = re.compile(
    r"\b(wgmma\S*|tcgen05\S*|mma\.sync\S*|cp\.async\S*|ld\.global\S*|st\.global\S*|ldmatrix\S*|tt\.\w+|ttng\.\w+|"
    r"[HIQ]MMA\S*|HGMMA\S*|LDG\S*|STG\S*|LDL\S*|STL\S*|LDGSTS\S*|UTMALDG\S*)"
)
_MOST_CHARACTERS = 60_000


class KernelExplorer:
    """A list of all kernels; for the chosen one a panel of its compile-time numbers, its source, and what it was compiled to.

    names: the kernels to choose from, all by default; the first is shown. Compiling runs in a process of its own, and needs no
    GPU. `.tuner` is the present kernel's `LiveTuner`, whose result is a `Look`: the code, and what `kernels.predict` expects of
    it at a real model's shape. Raises ConfigError for a name that there
    is none of.
    """

    def __init__(self, *names: str, title: str = "What the compiler makes of it") -> None:
        specs = all_specs()
        for name in names:
            if name not in specs:
                raise ConfigError(f"there is no kernel {name!r}; there are {', '.join(specs)}")
        self.title = title
        self.worker = CompileWorker()
        self._specs = {name: specs[name] for name in names or specs}
        self._tuners: dict[str, LiveTuner[Any, Look]] = {}
        self.kernel = widgets.Dropdown(
            options=list(self._specs), description="Kernel", tooltip="Which kernel to look at"
        )
        self.stage = widgets.ToggleButtons(
            options=STAGES, description="Compiled to", tooltip="Which of the compiler's languages"
        )
        self.kernel.observe(lambda _: self._choose(), "value")
        self.stage.observe(lambda _: self._show_code(), "value")
        self._panel = widgets.VBox()
        self._source, self._code = widgets.HTML(), widgets.HTML()
        columns = box([self._source, self._code], "infra-lab-columns")
        self.widget = root([title_widget(title), self.kernel, self._panel, self.stage, columns])
        self._choose()

    @property
    def tuner(self) -> LiveTuner[Any, Look]:
        """The panel of the chosen kernel."""
        return self._tuners[self.kernel.value]

    def _choose(self) -> None:
        name = self.kernel.value
        if name not in self._tuners:
            self._tuners[name] = self._tuner(self._specs[name])
            self._tuners[name].on_result(lambda _: self._show_code())
        self._panel.children = [self._tuners[name].widget]
        self._source.value = _listing(_source(self._specs[name]), "Triton")
        self._show_code()

    def _tuner(self, spec: KernelSpec) -> LiveTuner[Any, Look]:
        blocks = list(spec.configs[0].blocks)

        def compute(params: Any, progress: Progress) -> Look:
            progress(0.1, "compiling")
            config = KernelConfig({name: getattr(params, name) for name in blocks}, params.num_warps, params.num_stages)
            chip = CHIPS[params.gpu]
            made = self.worker.compile(spec.name, chip.target, config)
            progress(1.0)
            return Look(made, spec.work, chip, predict(spec.work, config, made, chip))

        return LiveTuner(params_of(spec), compute, draw, summarize=in_words, slow=True)

    def _show_code(self) -> None:
        if self.tuner.result is None:
            self._code.value = _listing("compiling …", self.stage.value)
            return
        made = self.tuner.result.compiled
        text = {"PTX": made.ptx, "TTGIR": made.ttgir, "TTIR": made.ttir}.get(self.stage.value)
        self._code.value = _listing(made.sass() if text is None else text, self.stage.value)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        self.tuner.wait()
        return bundle(self.widget, [self.tuner._live], f"{self.title}\n{self.kernel.value}: {self.tuner.summary}")


def params_of(spec: KernelSpec) -> Any:
    """Return a params dataclass for a kernel: the GPU, its block sizes around those of its configs, warps and stages."""
    gpus = [name for name, chip in CHIPS.items() if chip.target >= spec.min_capability]
    first = spec.configs[0]
    fields: list[tuple[str, type, Any]] = [
        ("gpu", str, knob("H100", choices=gpus, label="GPU", help="Compiled for sm_80 (A100), sm_90 or sm_100 (B200)"))
    ]
    for name, size in first.blocks.items():
        seen = {config.blocks[name] for config in spec.configs}
        choices = sorted(
            {size, *seen, *(value * factor // 2 for value in seen for factor in (1, 4) if value * factor >= 2)}
        )
        label = name.replace("_", " ").capitalize()
        fields.append(
            (name, int, knob(size, choices=choices, label=label, help="A size that the kernel is compiled for"))
        )
    warps = sorted({1, 2, 4, 8, 16, first.num_warps})
    stages = sorted({1, 2, 3, 4, 5, first.num_stages})
    fields.append(
        ("num_warps", int, knob(first.num_warps, choices=warps, label="Warps", help="Of 32 threads, a program"))
    )
    fields.append(
        ("num_stages", int, knob(first.num_stages, choices=stages, label="Stages", help="Loads in flight in a loop"))
    )
    return make_dataclass(
        f"{spec.name.title().replace('_', '')}Params", [(n, t, _own(f)) for n, t, f in fields], frozen=True
    )


def _own(made: Any) -> Any:
    """A field that belongs to no class yet."""
    return field(default=made.default, metadata=dict(made.metadata))


def _source(spec: KernelSpec) -> str:
    return inspect.getsource(spec.kernel.fn)


def _listing(text: str, what: str) -> str:
    """Text as HTML, with the instructions that tell most set off."""
    cut = "" if len(text) <= _MOST_CHARACTERS else f"\n… {len(text) - _MOST_CHARACTERS:,} more characters"
    marked = _WORTH_SEEING.sub(r"<mark>\1</mark>", escape(text[:_MOST_CHARACTERS], quote=False))
    return f'<pre class="infra-lab-code" tabindex="0" aria-label="{escape(what)}">{marked}{cut}</pre>'
