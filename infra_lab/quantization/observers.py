"""Observers: what calibration remembers of the values that pass, batch after batch, without keeping them.

    MinMax        lowest and highest value                     the range of an asymmetric grid
    AbsMax        largest magnitude, a channel or in all        SmoothQuant, static FP8
    Histogram     how many magnitudes lie where                 a range without outliers: by percentile or least error
    Hessian       how inputs vary together, X · Xᵀ              GPTQ, AWQ: the error of y = W · x without any x

Each has `observe(x)`, x [T, C] of any floating dtype, and its results as properties or methods. All of them refuse to answer
before they have seen anything, and refuse NaN and infinities: one of them would spoil every later batch.
"""

import torch

from infra_lab.errors import ConfigError

_BINS = 4096


class MinMax:
    """The lowest and the highest value."""

    def __init__(self) -> None:
        self._low, self._high = float("inf"), float("-inf")

    def observe(self, x: torch.Tensor) -> None:
        """Take in a batch."""
        low, high = torch.aminmax(_checked(x))
        self._low, self._high = min(self._low, float(low)), max(self._high, float(high))

    @property
    def range(self) -> tuple[float, float]:
        """(lowest, highest). Raises ConfigError if nothing was observed."""
        if self._low > self._high:
            raise _nothing_seen()
        return self._low, self._high


class AbsMax:
    """The largest magnitude of each channel."""

    def __init__(self) -> None:
        self._largest: torch.Tensor | None = None

    def observe(self, x: torch.Tensor) -> None:
        """Take in a batch."""
        largest = _checked(x).abs().amax(dim=0).float()
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)

    @property
    def channels(self) -> torch.Tensor:
        """[C] float32. Raises ConfigError if nothing was observed."""
        if self._largest is None:
            raise _nothing_seen()
        return self._largest

    @property
    def whole(self) -> float:
        """The largest of all channels."""
        return float(self.channels.max())


class Histogram:
    """How many magnitudes lie in each of 4,096 equal bins; the bins double in width whenever a larger value comes."""

    def __init__(self) -> None:
        self.counts = torch.zeros(_BINS, dtype=torch.float64)
        self.largest = 0.0
        """Where the last bin ends."""

    def observe(self, x: torch.Tensor) -> None:
        """Take in a batch."""
        magnitudes = _checked(x).abs().flatten().float().cpu()
        highest = float(magnitudes.max())
        if self.largest == 0.0:
            self.largest = highest or torch.finfo(torch.float32).tiny
        while highest > self.largest:
            self.counts = torch.cat([self.counts.view(-1, 2).sum(1), torch.zeros(_BINS // 2, dtype=torch.float64)])
            self.largest *= 2
        self.counts += torch.histc(magnitudes, _BINS, 0, self.largest).double()

    def percentile(self, percent: float) -> float:
        """Return the magnitude that `percent` of all values do not exceed, to within a bin.

        Raises ConfigError for a percentage outside (0, 100], and if nothing was observed.
        """
        if not 0 < percent <= 100:
            raise ConfigError(f"percentile {percent}; it must be above 0 and at most 100")
        cumulative = self._seen().cumsum(0)
        index = int(torch.searchsorted(cumulative, cumulative[-1] * percent / 100))
        return (min(index, _BINS - 1) + 1) * self.largest / _BINS

    def least_error(self, bits: int, candidates: int = 128) -> float:
        """Return the limit a at which a symmetric grid of `bits` over [-a, a] has the least mean squared error.

        A smaller a makes steps finer and clips more. Every value counts as the middle of its bin.
        """
        counts = self._seen()
        middles = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * self.largest / _BINS
        limits = torch.arange(1, candidates + 1, dtype=torch.float64) * self.largest / candidates
        steps = (limits / (2 ** (bits - 1) - 1)).unsqueeze(1)  # [limits, 1]
        rounded = (middles / steps).round_().clamp_(max=2 ** (bits - 1) - 1).mul_(steps)  # [limits, bins]
        errors = ((rounded - middles) ** 2 * counts).sum(dim=1)
        return float(limits[int(errors.argmin())])

    def _seen(self) -> torch.Tensor:
        if not self.counts.any():
            raise _nothing_seen()
        return self.counts


class Hessian:
    """H = 2/T · Σ x · xᵀ, that is half of GPTQ's second derivative, averaged over tokens.

    With it the mean squared error that a changed weight W' makes is known without the inputs:
    mean |(W - W') · x|² = ½ · tr((W - W') · H · (W - W')ᵀ).
    """

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None
        self._magnitudes: torch.Tensor | None = None
        self.num_tokens = 0

    def observe(self, x: torch.Tensor) -> None:
        """Take in a batch."""
        x = _checked(x).float()
        if self._sum is None or self._magnitudes is None:
            self._sum = torch.zeros(x.shape[1], x.shape[1], device=x.device)
            self._magnitudes = torch.zeros(x.shape[1], device=x.device)
        self._sum.addmm_(x.t(), x)
        self._magnitudes += x.abs().sum(dim=0)
        self.num_tokens += x.shape[0]

    @property
    def matrix(self) -> torch.Tensor:
        """H, [C, C] float32, new memory. Raises ConfigError if nothing was observed."""
        if self._sum is None:
            raise _nothing_seen()
        return self._sum * (2 / self.num_tokens)

    @property
    def magnitudes(self) -> torch.Tensor:
        """Mean |x| of each channel, [C] float32: what AWQ scales by."""
        if self._magnitudes is None:
            raise _nothing_seen()
        return self._magnitudes / self.num_tokens


def _checked(x: torch.Tensor) -> torch.Tensor:
    if x.numel() == 0:
        raise ConfigError("an observer was given no values; calibrate with at least one token")
    if not bool(torch.isfinite(x).all()):
        raise ConfigError("calibration met NaN or infinite activations; check the weights, or compute in float32")
    return x


def _nothing_seen() -> ConfigError:
    return ConfigError("nothing was observed; run calibration texts through the model first")
