"""Wrong solutions on purpose: `solutions/NAME.mutants.toml` beside `solutions/NAME.ipynb`.

    [[mutant]]
    name = "rounds down"
    exercise = "blocks"
    old = "-(-num_tokens // block_size)"
    new = "num_tokens // block_size"
    loses = { blocks = 1.0 }          # points, by exercise; exercises that are not named must lose nothing

A check that lets a plausible mistake through is a bug of the check; grading every mutant finds it.
"""

import copy
import tomllib
from pathlib import Path
from typing import NamedTuple

from infra_lab.course.notebooks import Notebook, exercise_name, role
from infra_lab.errors import ConfigError

_FIELDS = {"name": str, "exercise": str, "old": str, "new": str, "loses": dict}


class Mutant(NamedTuple):
    """One plausible mistake."""

    name: str
    exercise: str
    old: str
    new: str
    loses: dict[str, float]
    """Points that the check must take, by exercise."""


def read_mutants(path: Path) -> list[Mutant]:
    """Read a mutants file. Raises ConfigError, naming the mutant, for a field that is missing, unknown or of another type."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}; write the mistakes that a learner may make into it") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is not TOML: {error}") from None
    entries = content.get("mutant")
    if not isinstance(entries, list) or not entries or set(content) != {"mutant"}:
        raise ConfigError(f"{path.name}: expected one or more [[mutant]] and nothing else")
    mutants = []
    for number, entry in enumerate(entries, 1):
        where = f"{path.name}, mutant {number} ({entry.get('name', 'without a name')})"
        if set(entry) != set(_FIELDS) or not all(isinstance(entry[name], kind) for name, kind in _FIELDS.items()):
            raise ConfigError(f"{where}: expected text for name, exercise, old and new, and a table for loses")
        if not entry["loses"] or not all(
            isinstance(lost, int | float) and lost > 0 for lost in entry["loses"].values()
        ):
            raise ConfigError(f"{where}: loses must say how many points, above 0, of which exercise")
        mutants.append(Mutant(**entry))
    return mutants


def apply_mutant(solution: Notebook, mutant: Mutant) -> Notebook:
    """Return the solution with the mistake in it. Raises ConfigError unless `old` is in the exercise's answers once."""
    notebook = copy.deepcopy(solution)
    answers = [c for c in notebook["cells"] if role(c) == "answer" and exercise_name(c) == mutant.exercise]
    found = sum(cell["source"].count(mutant.old) for cell in answers)
    if found != 1:
        raise ConfigError(
            f"mutant {mutant.name!r}: {mutant.old!r} occurs {found} times in the answers of {mutant.exercise!r}; expected once"
        )
    for cell in answers:
        cell["source"] = cell["source"].replace(mutant.old, mutant.new)
    return notebook
