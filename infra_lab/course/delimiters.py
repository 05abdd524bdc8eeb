"""What the delimiters of a solution notebook enclose.

def allocate(self, num_tokens):
    ### BEGIN SOLUTION
    ...                                 is left out of the exercise
    ### END SOLUTION
"""

import re

from infra_lab.errors import ConfigError

STUB = ("# YOUR CODE HERE", "raise NotImplementedError")
_DELIMITER = re.compile(r"^(?P<indent>\s*)#{2,}\s*(?P<which>BEGIN|END) SOLUTION\s*$")


def without_solution(source: str, where: str) -> tuple[str, int]:
    """Put the stub in place of each solution, at its delimiter's indentation; return that and how many there were.

    Raises ConfigError, naming `where` and the line, for delimiters that are nested or have no partner.
    """
    kept: list[str] = []
    opened: int | None = None
    count = 0
    for number, line in enumerate(source.split("\n"), 1):
        found = _DELIMITER.match(line)
        if found is None:
            if opened is None:
                kept.append(line)
        elif found["which"] == "BEGIN":
            if opened is not None:
                raise ConfigError(
                    f"{where}, line {number}: BEGIN SOLUTION inside the one of line {opened}; end that first"
                )
            opened, count = number, count + 1
            kept += [found["indent"] + line for line in STUB]
        elif opened is None:
            raise ConfigError(f"{where}, line {number}: END SOLUTION without a BEGIN SOLUTION before it")
        else:
            opened = None
    if opened is not None:
        raise ConfigError(f"{where}, line {opened}: BEGIN SOLUTION without an END SOLUTION; add one below the solution")
    return "\n".join(kept), count


def without_delimiters(source: str) -> str:
    """Return the solution's code alone."""
    return "\n".join(line for line in source.split("\n") if _DELIMITER.match(line) is None)
