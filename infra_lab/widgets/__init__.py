"""Live panels: a dataclass of knobs, a pure computation, a pure drawing, kept in step with each other."""

from infra_lab.widgets import figures, theme
from infra_lab.widgets.figure_card import FigureCard
from infra_lab.widgets.generation import GenerationPanel
from infra_lab.widgets.kernel_explorer import KernelExplorer
from infra_lab.widgets.knobs import knob
from infra_lab.widgets.live_tuner import LiveTuner
from infra_lab.widgets.step_player import StepPlayer

__all__ = ["FigureCard", "GenerationPanel", "KernelExplorer", "LiveTuner", "StepPlayer", "figures", "knob", "theme"]
