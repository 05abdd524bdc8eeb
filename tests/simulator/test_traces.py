"""Published trace formats: rows as the publishers write them, and what is wrong with others."""

import json
from pathlib import Path

import pytest

from infra_lab.errors import ConfigError
from infra_lab.simulator.traces import read_azure_trace, read_mooncake_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:51.2224670,879,0
"""
MOONCAKE = [
    {"timestamp": 27482, "input_length": 1500, "output_length": 52, "hash_ids": [46, 47, 48]},
    {"timestamp": 30535, "input_length": 1100, "output_length": 26, "hash_ids": [46, 47, 2366]},
    {"timestamp": 30535, "input_length": 512, "output_length": 0, "hash_ids": [46]},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace"


def test_azure(file: Path) -> None:
    file.write_text(AZURE)
    requests = read_azure_trace(file)
    assert [request.arrival_s for request in requests] == pytest.approx([0.0, 4.314579, 64.541877], abs=1e-6)
    assert [request.prompt_tokens for request in requests] == [374, 396, 879]
    assert [request.output_tokens for request in requests] == [44, 109, 1]
    assert requests[0].prompt_token_ids()[:16] != requests[1].prompt_token_ids()[:16]
    assert read_azure_trace(file, limit=2) == requests[:2]


def test_azure_columns_are_found_by_name_and_blank_lines_passed_over(file: Path) -> None:
    file.write_text("Model,GeneratedTokens,TIMESTAMP,ContextTokens\r\n\r\nx,7,2023-11-16 18:15:46,9\r\n")
    (request,) = read_azure_trace(file)
    assert (request.prompt_tokens, request.output_tokens) == (9, 7)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("TIMESTAMP", "TIME", "line 1, TIMESTAMP: no such column"),
        ("374", "-374", "line 2, ContextTokens: -374"),
        ("374", "0", "line 2, ContextTokens: 0"),
        ("374", "nan", "line 2, ContextTokens: 'nan'"),
        ("374", "", "line 2, ContextTokens: ''"),
        ("109", "-1", "line 3, GeneratedTokens: -1"),
        ("109", "10.5", "line 3, GeneratedTokens: '10.5'"),
        (",109", "", "line 3, TIMESTAMP: 2 cells"),
        ("2023-11-16 18:15:50.9951690", "yesterday", "line 3, TIMESTAMP: 'yesterday'"),
        ("2023-11-16 18:15:50", "2023-11-16 18:15:40", "line 3, TIMESTAMP: 5.68542 s before"),
    ],
)
def test_azure_rows_that_cannot_be(file: Path, old: str, new: str, words: str) -> None:
    file.write_text(AZURE.replace(old, new, 1))
    with pytest.raises(ConfigError, match=words):
        read_azure_trace(file)


def test_rows_out_of_order_can_be_sorted(file: Path) -> None:
    lines = AZURE.splitlines()
    file.write_text("\n".join([lines[0], lines[2], lines[1], lines[3]]))
    with pytest.raises(ConfigError, match=r"line 3, TIMESTAMP: 4\.3"):
        read_azure_trace(file)
    requests = read_azure_trace(file, sort=True)
    assert [request.arrival_s for request in requests] == pytest.approx([0.0, 4.314579, 64.541877], abs=1e-6)
    assert [request.prompt_tokens for request in requests] == [374, 396, 879]


def write_mooncake(file: Path, *changes: dict[str, object]) -> Path:
    rows = [{**row, **(changes[i] if i < len(changes) else {})} for i, row in enumerate(MOONCAKE)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def test_mooncake(file: Path) -> None:
    first, second, third = read_mooncake_trace(write_mooncake(file))
    assert [r.arrival_s for r in (first, second, third)] == pytest.approx([0.0, 3.053, 3.053])
    assert [r.prompt_tokens for r in (first, second, third)] == [1500, 1100, 512]
    assert [r.output_tokens for r in (first, second, third)] == [52, 26, 1]


def test_mooncake_prompts_share_just_the_blocks_with_equal_ids(file: Path) -> None:
    first, second, third = (request.prompt_token_ids() for request in read_mooncake_trace(write_mooncake(file)))
    assert [len(prompt) for prompt in (first, second, third)] == [1500, 1100, 512]
    assert first[:1024] == second[:1024]
    assert first[1024:1040] != second[1024:1040]
    assert third == first[:512]
    assert first[:512] != first[512:1024]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"timestamp": -5}, "line 2, timestamp: -5"),
        ({"timestamp": float("nan")}, "line 2, timestamp: nan"),
        ({"timestamp": "soon"}, "line 2, timestamp: 'soon'"),
        ({"timestamp": 10}, r"line 2, timestamp: 27\.472 s before"),
        ({"input_length": 0}, "line 2, input_length: 0"),
        ({"input_length": True}, "line 2, input_length: True"),
        ({"output_length": -1}, "line 2, output_length: -1"),
        ({"output_length": None}, "line 2, output_length: None"),
        ({"hash_ids": None}, "line 2, hash_ids: None"),
        ({"hash_ids": [46, 47]}, "line 2, hash_ids: 2 blocks; 1100 tokens are 3 of 512"),
        ({"hash_ids": [46, 47, -1]}, "line 2, hash_ids: -1"),
        ({"hash_ids": [46, 47, "x"]}, "line 2, hash_ids: 'x'"),
    ],
)
def test_mooncake_rows_that_cannot_be(file: Path, change: dict[str, object], words: str) -> None:
    write_mooncake(file, {}, change)
    with pytest.raises(ConfigError, match=words):
        read_mooncake_trace(file)


@pytest.mark.parametrize(("text", "words"), [("", "no request"), ("{", "line 1, row"), ("[1]", "line 1, row: a list")])
def test_no_mooncake_trace(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_mooncake_trace(file)


def test_no_file(file: Path) -> None:
    for read in (read_azure_trace, read_mooncake_trace):
        with pytest.raises(ConfigError, match="cannot read"):
            read(file)
