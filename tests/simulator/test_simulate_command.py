"""`infra-lab simulate`: the examples run, and what is wrong in a file is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from infra_lab.cli import app
from infra_lab.data import data_path
from infra_lab.simulator.config_file import read_simulation

SMALL: dict[str, Any] = {
    "workload": {
        "arrivals": {"kind": "poisson", "rate_per_s": 5.0},
        "num_requests": 20,
        "lengths": {"prompt": {"median": 40}, "output": {"median": 8}},
    },
    "engine": {"scheduler": {"max_model_len": 512, "max_num_seqs": 4}, "num_kv_blocks": 100},
    "cost": {"kind": "linear", "fixed_s": 0.01},
    "slo": {"ttft_s": 1.0},
}
LLAMA = {
    "architecture": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 176, "num_layers": 3,
    "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "max_position": 512,
}  # fmt: skip


def changed(**changes: object) -> dict[str, Any]:
    """SMALL with fields set by their path, a__b for b in a; None takes a field out."""
    content: dict[str, Any] = json.loads(json.dumps(SMALL))
    for path, value in changes.items():
        *outer, last = path.split("__")
        section = content
        for name in outer:
            section = section[name]
        if value is None:
            del section[last]
        else:
            section[last] = value
    return content


def run(folder: Path, content: object, *options: str) -> tuple[int, str]:
    path = folder / "config.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    result = CliRunner().invoke(app, ["simulate", str(path), *options])
    return result.exit_code, result.output


@pytest.mark.parametrize("name", ["chat_sessions.yaml", "spike_on_a_cluster.yaml"])
def test_the_examples_are_sound(name: str) -> None:
    simulation = read_simulation(data_path("workloads") / name)
    assert len(simulation.requests) > 100


def test_table_and_json(tmp_path: Path) -> None:
    code, output = run(tmp_path, SMALL, "--json", str(tmp_path / "out.json"))
    assert code == 0, output
    for word in ("TTFT", "TPOT", "ITL", "20 of 20 requests", "goodput", "KV blocks"):
        assert word in output
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["num_served"] == 20
    assert set(figures["ttft_s"]) == {"mean", "p50", "p90", "p99", "max"}
    assert "served" not in figures


def test_a_tree_finds_more_than_whole_blocks(tmp_path: Path) -> None:
    chats = {"mean_turns": 3, "system_tokens": 100}
    cached = {}
    for index in ("hash", "radix"):
        content = changed(workload__lengths=None, workload__sessions=chats, engine__prefix_index=index)
        path = tmp_path / f"{index}.yaml"
        path.write_text(yaml.safe_dump(content))
        cached[index] = sum(request.cached_tokens for request in read_simulation(path).run().served)
    assert 0 < cached["hash"] < cached["radix"]


@pytest.mark.parametrize(
    "content",
    [
        changed(workload__lengths="azure-code"),
        changed(workload__lengths=None, workload__sessions={"mean_turns": 2, "system_tokens": 64}),
        changed(workload__arrivals={"kind": "gamma", "rate_per_s": "2e0", "cv": 3}),
        changed(workload__arrivals={"kind": "diurnal", "rate_per_s": 2, "hourly": [1, 2, 0.5], "period_s": 60}),
        changed(engine__scheduler__policy={"name": "dynamic", "max_wait_s": 0.01, "batch_size": 4}),
        changed(engine__scheduler__policy="static"),
        changed(engine__prefix_index="radix"),
        changed(cluster={"num_replicas": 2, "routing": "round-robin"}),
        changed(cost={"kind": "roofline", "chip": "A100", "model": "tiny"}),
        changed(cost={"kind": "roofline", "chip": "A100", "model": LLAMA, "weight_bytes": 0.5}),
        changed(cost={"kind": "table", "tokens": [1, 512], "context": [1], "seconds": [[0.1], [0.2]]}),
    ],
)
def test_every_kind_runs(tmp_path: Path, content: dict[str, Any]) -> None:
    scheduler = content["engine"]["scheduler"]
    scheduler.setdefault("max_batched_tokens", 512)
    code, output = run(tmp_path, content)
    assert code == 0, output


def test_traces_are_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "azure.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,30,4\n2023-11-16 18:15:47,-3,4\n"
    )
    trace = {"format": "azure", "path": "azure.csv", "limit": 1}
    code, output = run(tmp_path, {**SMALL, "workload": {"trace": trace}})
    assert code == 0, output
    code, output = run(tmp_path, {**SMALL, "workload": {"trace": {**trace, "limit": 2}}})
    assert code == 2
    assert "line 3, ContextTokens: -3" in output.replace("\n", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed(workload=None), "the section 'workload' is missing"),
        (changed(workloads={}), "unknown field 'workloads'"),
        (changed(workload__arrivals__rate_per_s=-1), "rate_per_s is -1"),
        (changed(workload__arrivals__rate_per_s="fast"), "workload.arrivals.rate_per_s is 'fast'; expected a number"),
        (changed(workload__arrivals__rate_per_s=None), "the field 'rate_per_s' is missing"),
        (changed(workload__arrivals__cv=2), "workload.arrivals: unknown field 'cv'"),
        (changed(workload__arrivals__kind="fractal"), "workload.arrivals.kind is 'fractal'"),
        (changed(workload__num_requests=None), "num_requests"),
        (changed(workload__num_requests=2.5), "workload.num_requests is 2.5; expected a whole number"),
        (changed(workload__trace={"format": "azure", "path": "x"}), "expected just one"),
        (changed(workload__lengths="netflix"), "no published lengths 'netflix'"),
        (changed(workload__lengths__prompt__median=0), "workload.lengths.prompt: median is 0"),
        (changed(engine__scheduler__policy="psychic"), "engine.scheduler.policy is 'psychic'"),
        (changed(engine__scheduler__policy={"name": "psychic"}), "engine.scheduler.policy.name is 'psychic'"),
        (changed(engine__scheduler__max_prefill_chunk=9999), "engine.scheduler: max_prefill_chunk is 9999"),
        (changed(engine__scheduler__max_num_seqs=True), "engine.scheduler.max_num_seqs is True"),
        (changed(engine__scheduler__speed=3), "engine.scheduler: unknown field 'speed'"),
        (changed(engine__num_kv_blocks=0), "engine: num_kv_blocks is 0"),
        (changed(engine__prefix_index="tree"), "engine.prefix_index is 'tree'"),
        (changed(engine__num_kv_blocks=None), "engine: the field 'num_kv_blocks' is missing"),
        (changed(cluster={"num_replicas": 0}), "num_replicas is 0"),
        (changed(cluster={"num_replicas": 2, "routing": "near"}), "cluster.routing is 'near'"),
        (changed(cost__kind="guess"), "cost.kind is 'guess'"),
        (changed(cost__fixed_s=-0.1), "fixed_s is -0.1"),
        (changed(cost={"kind": "roofline", "chip": "Z80"}), "cost.chip is 'Z80'"),
        (changed(cost={"kind": "roofline", "chip": "A100", "model": {**LLAMA, "num_heads": 3}}), "num_heads is 3"),
        (changed(cost={"kind": "roofline", "chip": "A100", "model": "tiny", "unit": "fp8"}), "unit is 'fp8'"),
        (changed(slo__ttft_s=0), "slo: ttft_s is 0"),
        (changed(cluster={"num_replicas": 2}, cost={"kind": "roofline", "chip": "A100", "model": "tiny"}), "linear"),
        ("workload: {", "is not YAML"),
        ("- 1", "expected a section"),
        ("1: {}", "the field 1 is not text"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, content: object, words: str) -> None:
    code, output = run(tmp_path, content)
    assert code == 2, output
    assert words in output.replace("\n", "")
    assert "Traceback" not in output


def test_no_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["simulate", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2
    assert "cannot read" in result.output
