"""The result of a suite: rows that each name the peer or limit they stand beside."""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from infra_lab.hardware.machine import Machine, describe_machine


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One figure beside the one it is compared with."""

    name: str
    value: float
    unit: str
    peer: str
    """Who or what the value is compared with: a library, or a limit measured in the same run."""
    peer_value: float
    ratio: float
    """How the two compare; `ratio_meaning` says what of what."""
    ratio_meaning: str = "value / peer"
    target: str = ""
    """What was asked for, e.g. "≥ 2.5"."""
    is_reached: bool | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class BenchReport:
    """A suite's rows and what they were measured on."""

    suite: str
    rows: list[BenchRow]
    machine: Machine = field(default_factory=describe_machine)
    measured_at: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    versions: dict[str, str] = field(default_factory=dict)

    def table(self) -> Table:
        """The rows as a table for a terminal; notes are set below it, once each."""
        notes = list(dict.fromkeys(row.note for row in self.rows if row.note))
        numbered = [f"{number}  {note}" for number, note in enumerate(notes, 1)]
        title = f"infra-lab bench {self.suite}\n{self.machine.summary}"
        table = Table(
            title=title, caption="\n".join(numbered), caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        table.add_column("", no_wrap=True)
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("peer or limit", overflow="fold", min_width=17)
        for column in ("its value", "ratio", "asked"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for row in self.rows:
            mark = {True: "[green]✓[/]", False: "[red]✗[/]", None: ""}[row.is_reached]
            note = f" ({notes.index(row.note) + 1})" if row.note else ""
            table.add_row(
                row.name + note,
                f"{row.value:,.4g} {row.unit}",
                row.peer,
                f"{row.peer_value:,.4g}",
                f"{row.ratio:.2f}",
                row.target,
                mark,
            )
        return table

    def write_json(self, path: Path) -> None:
        """Write the same figures; the file appears whole or not at all."""
        content: dict[str, Any] = asdict(self)
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def at_least(
    name: str, value: float, unit: str, peer: str, peer_value: float, target: float | None, note: str = ""
) -> BenchRow:
    """Build a row of which more is better: ratio = value / peer."""
    return _row(name, (value, unit), (peer, peer_value), ("≥", target), note)


def at_most(
    name: str, value: float, unit: str, peer: str, peer_value: float, target: float | None, note: str = ""
) -> BenchRow:
    """Build a row of which less is better: ratio = value / peer, as in a time or a size."""
    return _row(name, (value, unit), (peer, peer_value), ("≤", target), note)


def _row(
    name: str, measured: tuple[float, str], peer: tuple[str, float], asked: tuple[str, float | None], note: str
) -> BenchRow:
    ratio = measured[0] / peer[1]
    sign, target = asked
    return BenchRow(
        name=name,
        value=measured[0],
        unit=measured[1],
        peer=peer[0],
        peer_value=peer[1],
        ratio=ratio,
        target="" if target is None else f"{sign} {target:g}",
        is_reached=None if target is None else (ratio >= target if sign == "≥" else ratio <= target),
        note=note,
    )
