"""What an operation must do at the least: arithmetic and traffic, the two axes of a roofline."""

from typing import NamedTuple


class Cost(NamedTuple):
    """Floating-point operations and bytes moved to and from memory, each input and output counted once."""

    flops: int
    num_bytes: int

    @property
    def intensity(self) -> float:
        """Arithmetic intensity in FLOP per byte; above a machine's FLOP/s over bytes/s it is compute-bound."""
        return self.flops / self.num_bytes
