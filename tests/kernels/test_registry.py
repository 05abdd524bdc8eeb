"""No kernel is forgotten: what is not listed is neither compiled in the tests nor tuned nor explored."""

from importlib import import_module
from pathlib import Path

import kernels
from kernels.registry import FAMILIES, all_specs


def test_every_family_is_listed() -> None:
    folder = Path(kernels.__file__).parent
    with_specs = {path.stem for path in folder.glob("*.py") if "\nSPECS = " in path.read_text()}
    assert with_specs == set(FAMILIES)


def test_every_spec_names_all_arguments_of_its_kernel() -> None:
    for spec in all_specs().values():
        blocks = {name for config in spec.configs for name in config.blocks}
        assert set(spec.kernel.arg_names) == {*spec.signature, *spec.constants, *blocks}, spec.name
        assert all(set(config.blocks) == blocks for config in spec.configs), spec.name
        assert set(spec.aligned) <= set(spec.signature), spec.name


def test_what_is_exported_is_typed() -> None:
    for name in kernels.__all__:
        assert getattr(kernels, name).__doc__, name
    assert import_module("kernels.norms").rms_norm is kernels.rms_norm
