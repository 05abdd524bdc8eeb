"""What the launchers choose for a target compiles for it without spills, where it is not the config that stands first."""

import json
import os
import subprocess
import sys

import pytest

CODE = """
import json, sys
from kernels import flash_attention, merge, paged_decode
from kernels.compile import TARGETS, compile_kernel
spec = {spec.name: spec for family in (flash_attention, merge, paged_decode) for spec in family.SPECS}[sys.argv[1]]
quantized = sys.argv[1].endswith(("int8", "fp8"))
for target in (known for known in TARGETS if known >= spec.min_capability):
    configs = [spec.configs[0]]
    if "BLOCK_M" in spec.configs[0].blocks:
        configs += [flash_attention.launch_config(rows, 2, target, quantized) for rows in (16, 64, 65)]
    for config in configs:
        made = compile_kernel(spec, target, config)
        matrix = sorted(made.tensor_core_instructions)
        fits = made.blocks_per_multiprocessor
        print(json.dumps([target, dict(config.blocks), config.num_warps, made.spill_bytes, fits, matrix]))
"""
NAMES = ["flash_attention", "flash_attention_window", "paged_flash_attention", "paged_flash_attention_int8"]
NAMES += ["paged_flash_attention_fp8", "paged_decode", "paged_decode_int8", "paged_decode_fp8", "merge_attention"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_launched_fits(name: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", CODE, name]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert reports
    for report in reports:
        *_, spill_bytes, fits, matrix = report
        assert spill_bytes == 0, report
        assert fits >= 1, report
        assert matrix or name == "merge_attention", report
