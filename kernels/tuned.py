"""How a launcher gets the config that was measured to be the fastest on this GPU, if anybody has measured (see `tuning`).

    _TUNED = Tunable("silu_mul", (_act_mul,), CONFIGS)                                 beside the kernel
    config = _TUNED.config(x.device, {"rows": bucket(rows), "columns": columns}, lambda: CONFIGS[0])

Sizes that change from step to step are given as their bucket, the next power of two, so that a step of 13 tokens takes what was
measured for 16; sizes that the model fixes are given as they are.

The file is read when a kernel is first launched on a device, once a process. Nothing is measured here, the GPU is not waited
for, and a CUDA graph may be under capture. Asking costs about 1 µs.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from kernels.spec import KernelConfig
from kernels.tuning_file import default_cache_dir, file_name, make_header, parse, read

INTERPRETER = "interpreter"
"""The name of the "GPU" that runs kernels on the CPU: what is measured there is about nothing, but tests can use it."""
_tunables: list["Tunable"] = []
_watches: list["Watch"] = []


@dataclass(frozen=True, slots=True)
class Question:
    """What a launcher asked."""

    tunable: "Tunable"
    device: torch.device
    shape: str
    fixed: tuple[tuple[str, int], ...]
    """Blocks that the shape decides: a row's width, the height of an expert's block."""
    default: KernelConfig = field(compare=False)

    def space(self, more: Iterable[KernelConfig] = ()) -> tuple[KernelConfig, ...]:
        """Return what may be measured for it: the default first, then the kernel's space and more, as the shape allows."""
        configs = (self.default, *self.tunable.space, *more)
        fitted = (KernelConfig({**c.blocks, **dict(self.fixed)}, c.num_warps, c.num_stages) for c in configs)
        return tuple({(*sorted(c.blocks.items()), c.num_warps, c.num_stages): c for c in fitted}.values())


@dataclass(slots=True)
class Watch:
    """What launchers ask while it is open, and answers that they get instead of the file's."""

    answers: Mapping[Question, KernelConfig]
    given: dict[Question, KernelConfig] = field(default_factory=dict)
    """Every question, and the config that was launched."""


@contextmanager
def watch(answers: Mapping[Question, KernelConfig] | None = None) -> Iterator[Watch]:
    """Watch what is asked in the block; not for several threads at once."""
    made = Watch(answers or {})
    _watches.append(made)
    try:
        yield made
    finally:
        _watches.remove(made)


def bucket(size: int) -> int:
    """Return the next power of two: sizes of one bucket share a config."""
    return 1 << (size - 1).bit_length() if size > 1 else size


def forget() -> None:
    """Read the files again when they are next asked for."""
    for tunable in _tunables:
        tunable.tables.clear()
        tunable.answers.clear()


def gpu_of(device: torch.device) -> str:
    """Return the name under which times on a device are kept."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else INTERPRETER


def _in_words(shape: Mapping[str, object]) -> str:
    return " ".join([f"{name}={value}" for name, value in shape.items()])


@dataclass(eq=False, slots=True)
class Tunable:
    """A launcher's choice among configs."""

    name: str
    kernels: tuple[Any, ...]
    """All that one of them may launch: when the source of any changes, the times are stale."""
    space: tuple[KernelConfig, ...]
    tables: dict[torch.device, dict[str, KernelConfig]] = field(default_factory=dict)
    """The fastest by shape, as far as the files were read."""
    answers: dict[tuple[object, ...], KernelConfig | None] = field(default_factory=dict)
    """What was asked before: a tuple is found faster than words."""

    def __post_init__(self) -> None:
        _tunables.append(self)

    def config(
        self,
        device: torch.device,
        shape: Mapping[str, object],
        default: Callable[[], KernelConfig],
        fixed: Mapping[str, int] | None = None,
    ) -> KernelConfig:
        """Return the fastest config that was measured for a shape, or the default.

        shape: sizes and dtypes by name, all that the speed depends on. fixed: blocks that must have a certain size; a config
        with another one would give wrong results, so it is ignored with a warning.
        """
        table = self.tables.get(device)
        if table is None:
            table = self.tables[device] = self._load(device)
        if not table and not _watches:
            return default()
        key = (device, *shape.values())
        if key not in self.answers:
            self.answers[key] = self._look_up(table, shape, fixed or {})
        if _watches:
            return self._watched(device, _in_words(shape), fixed or {}, self.answers[key], default())
        return self.answers[key] or default()

    def _look_up(
        self, table: Mapping[str, KernelConfig], shape: Mapping[str, object], fixed: Mapping[str, int]
    ) -> KernelConfig | None:
        config = table.get(_in_words(shape))
        if config is None or all(config.blocks[name] == size for name, size in fixed.items()):
            return config
        warnings.warn(
            f"{self.name} needs {dict(fixed)} for {_in_words(shape)}: the config in its file is ignored", stacklevel=3
        )
        return None

    def _watched(
        self,
        device: torch.device,
        shape: str,
        fixed: Mapping[str, int],
        config: KernelConfig | None,
        default: KernelConfig,
    ) -> KernelConfig:
        question = Question(self, device, shape, tuple(fixed.items()), default)
        for seen in _watches:
            config = seen.answers.get(question, config)
        for seen in _watches:
            seen.given[question] = config or default
        return config or default

    def _load(self, device: torch.device) -> dict[str, KernelConfig]:
        folder = default_cache_dir()
        if not folder.is_dir():  # nobody has tuned anything
            return {}
        header = make_header(gpu_of(device), self.name, *self.kernels)
        times = read(folder / file_name(header), header, so="its configs are not used")
        best = ((shape, self._fastest(of_shape)) for shape, of_shape in times.items())
        return {shape: config for shape, config in best if config is not None}

    def _fastest(self, times: Mapping[str, float | None]) -> KernelConfig | None:
        names = self.space[0].blocks.keys()
        for text, _ in sorted(((t, s) for t, s in times.items() if s is not None), key=lambda item: item[1]):
            try:
                config = parse(text)
            except ValueError as error:
                warnings.warn(f"a config of {self.name} is ignored: {error}", stacklevel=2)
                continue
            if config.blocks.keys() == names:
                return config
            warnings.warn(f"{text} is ignored: {self.name} has the blocks {', '.join(names)}", stacklevel=2)
        return None
