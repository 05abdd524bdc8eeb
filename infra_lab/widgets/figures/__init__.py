"""Figures of what the engine recorded: pure functions to plotly figures, a file for each."""

from infra_lab.widgets.figures.kv_block_map import kv_block_map
from infra_lab.widgets.figures.kv_usage import kv_usage
from infra_lab.widgets.figures.latency_distribution import latency_distribution
from infra_lab.widgets.figures.roofline import RooflinePoint, roofline
from infra_lab.widgets.figures.step_timeline import step_timeline
from infra_lab.widgets.figures.step_times import step_times

__all__ = [
    "RooflinePoint",
    "kv_block_map",
    "kv_usage",
    "latency_distribution",
    "roofline",
    "step_timeline",
    "step_times",
]
