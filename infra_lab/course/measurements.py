"""What a GPU run measured: `infra-lab bench SUITE --json datasets/measurements/<gpu>/SUITE.json`, read back for lessons.

Runs on CPUs lie one folder deeper, in `measurements/cpu/<machine>/`: lessons measure on the reader's own.
"""

import json
from dataclasses import dataclass
from typing import Any

from infra_lab.data import data_path
from infra_lab.errors import CorruptModelError, ModelNotFoundError


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """One suite's figures as they were recorded on one GPU."""

    gpu: str
    """The folder's name, e.g. "h200"."""
    measured_at: str
    rows: tuple[dict[str, Any], ...]
    """As `BenchRow`: name, value, unit, peer, peer_value, ratio."""

    def lines(self) -> list[str]:
        """One line a row."""
        return [
            f"{row['name']}: {row['value']:,.4g} {row['unit']}, {row['ratio']:.2f} of {row['peer']}"
            for row in self.rows
        ]


def recorded(suite: str) -> list[RecordedRun]:
    """Return the recorded runs of a suite, by GPU; an empty list where nobody has recorded one.

    Raises CorruptModelError for a file that is no bench report, naming it.
    """
    try:
        root = data_path("measurements")
    except ModelNotFoundError:
        return []
    runs = []
    for path in sorted(root.glob(f"*/{suite}.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            runs.append(RecordedRun(path.parent.name, content["measured_at"], tuple(content["rows"])))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptModelError(f"{path} is no report of `infra-lab bench` ({error}); record it again") from None
    return runs
