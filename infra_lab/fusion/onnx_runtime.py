"""What ONNX Runtime makes of a module: an exported graph of operators, and rules that replace patterns in it.

    torch ─▶ torch.export ─▶ ONNX nodes ─▶ off | basic | extended | all | transformers ─▶ what runs
                                                 │        │                └ rules for whole model families, a separate tool
                                                 │        └ fused operators of its own: SimplifiedLayerNormalization, QuickGelu
                                                 └ constants folded, what is redundant removed

A rule knows a pattern by the operators that it is spelled with: RMSNorm written with a reciprocal root is the same function,
and is not recognised. That is the difference to a compiler that fuses loops, whatever they compute.

The counts are those of the optimized graph, which ONNX Runtime saves; the bytes are those of a run, by its own profiler.
Everything happens on this machine: telemetry is switched off.
"""

import json
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from infra_lab.errors import MissingExtraError

OnnxLevel = Literal["off", "basic", "extended", "all", "transformers"]
ONNX_LEVELS: tuple[OnnxLevel, ...] = get_args(OnnxLevel)

FREE = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Identity", "Flatten", "Constant"})
"""Operators that only rename: their output is their input's memory."""


@dataclass(frozen=True, slots=True)
class OnnxKernel:
    """One node that ran."""

    name: str
    op: str
    activation_bytes: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """A module at one level of optimization."""

    level: OnnxLevel
    operators: dict[str, int]
    """Nodes by type, most frequent first."""
    kernels: tuple[OnnxKernel, ...]
    """Those of them that start something, as they ran."""
    outputs: tuple[torch.Tensor, ...]

    @property
    def num_nodes(self) -> int:
        """All nodes, whether they start something or not."""
        return sum(self.operators.values())


class OnnxModule:
    """A module exported for these inputs, in float32; the file lives as long as the object.

    Raises MissingExtraError without onnx, onnxscript and onnxruntime.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
        try:
            import onnxruntime
            import onnxscript  # noqa: F401 - torch's exporter needs it
        except ImportError as error:
            raise MissingExtraError(
                f"ONNX Runtime's part needs {error.name}, which is not installed: pip install 'infra-lab[fusion]'"
            ) from error
        onnxruntime.disable_telemetry_events()
        self._ort = onnxruntime
        self._inputs = [tensor.contiguous().numpy() for tensor in inputs]
        self._folder = tempfile.TemporaryDirectory(prefix="infra-lab-onnx-")
        self.path = Path(self._folder.name, "module.onnx")
        with _quiet():
            program = torch.onnx.export(module, tuple(inputs), dynamo=True, optimize=False, verbose=False)
        assert program is not None
        program.save(str(self.path))

    def optimized(self, level: OnnxLevel) -> OnnxGraph:
        """Optimize, run once under the profiler, and report."""
        saved, source = self.path.with_name(f"{level}.onnx"), self._source(level)
        options = self._options(level)
        options.optimized_model_filepath = str(saved)
        options.enable_profiling = True
        options.profile_file_prefix = str(self.path.with_name(level))
        options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights are not in the profile
        session = self._session(source, options)
        outputs = tuple(torch.from_numpy(output) for output in self._run(session))
        events = json.loads(Path(session.end_profiling()).read_text())
        return OnnxGraph(level, operators_of(saved), tuple(_kernels(events)), outputs)

    def session(self, level: OnnxLevel = "all", num_threads: int = 1) -> Any:
        """Return a function without arguments that runs the module on its inputs, for timing."""
        options = self._options(level)
        options.intra_op_num_threads = num_threads
        session = self._session(self._source(level), options)
        return lambda: self._run(session)

    def _options(self, level: OnnxLevel) -> Any:
        names = {"off": "DISABLE_ALL", "basic": "ENABLE_BASIC", "extended": "ENABLE_EXTENDED"}
        options = self._ort.SessionOptions()
        chosen = f"ORT_{names.get(level, 'ENABLE_ALL')}"
        options.graph_optimization_level = getattr(self._ort.GraphOptimizationLevel, chosen)
        options.log_severity_level = 3  # that a saved graph fits this machine only is no news
        return options

    def _source(self, level: OnnxLevel) -> Path:
        """The exported file, or what the tool for transformers has made of it; its rules for a decoder are called gpt2."""
        made = self.path.with_name("by-the-tool.onnx")
        if level != "transformers":
            return self.path
        if not made.exists():
            from onnxruntime.transformers.optimizer import optimize_model

            options, clean = self._options("basic"), self.path.with_name("basic.onnx")  # its rules want a clean graph
            options.optimized_model_filepath = str(clean)
            self._session(self.path, options)
            with _quiet():
                optimize_model(str(clean), model_type="gpt2", opt_level=0).save_model_to_file(str(made))
        return made

    def _session(self, path: Path, options: Any) -> Any:
        return self._ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _run(self, session: Any) -> list[Any]:
        names = [entry.name for entry in session.get_inputs()]
        outputs: list[Any] = session.run(None, dict(zip(names, self._inputs, strict=True)))
        return outputs


def operators_of(path: Path) -> dict[str, int]:
    """Count the nodes of an ONNX file by type, without constants, which are no work."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    counts = Counter(node.op_type for node in graph.node if node.op_type != "Constant")
    return dict(counts.most_common())


def _kernels(events: list[dict[str, Any]]) -> list[OnnxKernel]:
    """Read the profiler's events: one for each node that ran, with the sizes of what it read and wrote."""
    ran = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    return [
        OnnxKernel(
            name=event["name"].removesuffix("_kernel_time"),
            op=event["args"]["op_name"],
            activation_bytes=int(event["args"]["activation_size"]) + int(event["args"]["output_size"]),
            weight_bytes=int(event["args"]["parameter_size"]),
        )
        for event in ran
        if event["args"]["op_name"] not in FREE
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter says what it does, and that packages are missing that this model does not need; so does the tool."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
