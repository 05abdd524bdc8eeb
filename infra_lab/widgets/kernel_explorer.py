"""`KernelExplorer`: turn a kernel's block sizes, warps and stages, and see what the compiler makes of it; no GPU needed."""

import inspect
import re
from dataclasses import field, make_dataclass
from html import escape
from typing import Any

import ipywidgets as widgets

from infra_lab.errors import ConfigError
from infra_lab.widgets.bundle import bundle
from infra_lab.widgets.figures.kernel_resources import kernel_resources
from infra_lab.widgets.knobs import knob
from infra_lab.widgets.live_tuner import LiveTuner, Progress
from infra_lab.widgets.panel_view import box, root, title_widget
from kernels.compile import TARGETS, Compiled
from kernels.compile_worker import CompileWorker
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

    names: the kernels to choose from, all by default; the first is shown. Compiling runs in a process of its own. `.tuner` is
    the present kernel's `LiveTuner`, whose result is a `kernels.compile.Compiled`. Raises ConfigError for a name that there
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
        self._tuners: dict[str, LiveTuner[Any, Compiled]] = {}
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
    def tuner(self) -> LiveTuner[Any, Compiled]:
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

    def _tuner(self, spec: KernelSpec) -> LiveTuner[Any, Compiled]:
        blocks = list(spec.configs[0].blocks)

        def compute(params: Any, progress: Progress) -> Compiled:
            progress(0.1, "compiling")
            config = KernelConfig({name: getattr(params, name) for name in blocks}, params.num_warps, params.num_stages)
            made = self.worker.compile(spec.name, int(params.target.removeprefix("sm_")), config)
            progress(1.0)
            return made

        return LiveTuner(params_of(spec), compute, kernel_resources, summarize=in_words, slow=True)

    def _show_code(self) -> None:
        made = self.tuner.result
        if made is None:
            self._code.value = _listing("compiling …", self.stage.value)
            return
        text = {"PTX": made.ptx, "TTGIR": made.ttgir, "TTIR": made.ttir}.get(self.stage.value)
        self._code.value = _listing(made.sass() if text is None else text, self.stage.value)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        self.tuner.wait()
        return bundle(self.widget, [self.tuner._live], f"{self.title}\n{self.kernel.value}: {self.tuner.summary}")


def params_of(spec: KernelSpec) -> Any:
    """Return a params dataclass for a kernel: its target, its block sizes around those of its configs, warps and stages."""
    targets = [f"sm_{target}" for target in TARGETS if target >= spec.min_capability]
    first = spec.configs[0]
    default = "sm_90" if "sm_90" in targets else targets[0]
    fields: list[tuple[str, type, Any]] = [
        ("target", str, knob(default, choices=targets, label="GPU", help="A100, H100 and H200, B200"))
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


def in_words(made: Compiled) -> str:
    """Say what limits the kernel and which of the GPU's special instructions it uses."""
    blocks = made.blocks_per_multiprocessor
    held = f"{blocks} at once on a multiprocessor ({made.occupancy:.0%} of its warps)" if blocks else "it does not fit"
    spilled = f"{made.spill_bytes} bytes spilled" if made.spill_bytes else "nothing spilled"
    products = ", ".join(sorted(made.tensor_core_instructions)) or "none"
    copies = ", ".join(sorted(made.copy_instructions)) or "none"
    return (
        f"{made.registers} registers a thread, {spilled}, {made.shared_bytes / 1024:.1f} KiB of shared memory: {held}. "
        f"Matrix instructions: {products}. Asynchronous copies: {copies}."
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
