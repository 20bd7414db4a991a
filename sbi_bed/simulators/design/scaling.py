"""How nets read values: in coordinates of order one, and in which range they were trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Scaling"]

_MARGIN = 0.1  # of a range, beyond its ends, where a net still may be asked


class Scaling(nn.Module):
    """Values (..., F) to coordinates of order one, each by the map that its distribution asks for.

    Positive values over more than two decades are read in logs if that makes them less skewed, values with heavy tails by
    asinh, others as they are. Nets read all positive values over two decades in logs, too: what matters may happen in a
    small part of a long range, such as the first hour of a hundred.

    Args:
        values: Draws (N, F) that show the distributions.

    Attributes:
        num_read: Coordinates of `read`.
    """

    kind: Tensor
    centre: Tensor
    width: Tensor
    loc: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    log_loc: Tensor
    log_scale: Tensor

    def __init__(self, values: Tensor):
        super().__init__()
        values = values.detach().double()
        low, lower, middle, upper, high = torch.quantile(
            values[: 10**5], torch.tensor([0.001, 0.1, 0.5, 0.9, 0.999]).double(), 0
        )
        is_wide = (values > 0).all(0) & (high > 100 * low)
        is_log = is_wide & (_skewness(values.abs().clamp_min(1e-300).log()).abs() < _skewness(values).abs())
        heavy = (high - low) > 8 * (upper - lower)
        width = (upper - lower).where(upper > lower, values.std(0, correction=0)).clamp_min(1e-30)
        self.register_buffer("low", values.amin(0))
        self.register_buffer("high", values.amax(0))
        self.register_buffer("kind", torch.where(is_log, 1, torch.where(heavy, 2, 0)))
        self.register_buffer("centre", middle)
        self.register_buffer("width", width)
        free = self._free(values)
        sd = free.std(0, correction=0)
        self.register_buffer("loc", free.mean(0))
        self.register_buffer("scale", sd.where(sd > 1e-9, 1.0))
        self._in_logs_too = (is_wide & ~is_log).nonzero().flatten().tolist()
        self.num_read = values.shape[-1] + len(self._in_logs_too)
        logs = values[:, self._in_logs_too].log()
        self.register_buffer("log_loc", logs.mean(0))
        self.register_buffer("log_scale", (logs - logs.mean(0)).square().mean(0).sqrt())

    def forward(self, value: Tensor) -> Tensor:
        """Coordinates (..., F)."""
        return (self._free(value) - self.loc.to(value)) / self.scale.to(value)

    def read(self, value: Tensor) -> Tensor:
        """Coordinates (..., num_read) for a net. Beyond the range it answers as at its end, and does not extrapolate."""
        low, high = (self(end).to(value) for end in (self.low, self.high))
        read = self(value).clamp(low, high)
        if not self._in_logs_too:
            return read
        low, high = (end[self._in_logs_too].to(value) for end in (self.low, self.high))
        logs = value[..., self._in_logs_too].clamp(low, high).log()
        return torch.cat([read, (logs - self.log_loc.to(value)) / self.log_scale.to(value)], -1)

    def inverse(self, z: Tensor) -> Tensor:
        """Values (..., F)."""
        free = self.loc.to(z) + self.scale.to(z) * z
        by_asinh = self.centre.to(z) + self.width.to(z) * free.clamp(-40.0, 40.0).sinh()
        return torch.where(self.kind == 1, free.clamp(-80.0, 80.0).exp(), torch.where(self.kind == 2, by_asinh, free))

    def log_slope(self, value: Tensor) -> Tensor:
        """log dz/dy, (..., F)."""
        far = (value - self.centre.to(value)) / self.width.to(value)
        by_asinh = -0.5 * torch.log1p(far.square()) - self.width.to(value).log()
        slope = torch.where(self.kind == 1, -self._log(value), torch.where(self.kind == 2, by_asinh, 0.0))
        return slope - self.scale.to(value).log()

    def outside(self, value: Tensor) -> Tensor:
        """Which values (..., F) are far outside those that it was made from: by a tenth of their range in coordinates."""
        low, high, z = self(self.low), self(self.high), self(value)
        margin = _MARGIN * (high - low)
        return (z < low - margin) | (z > high + margin)

    def _free(self, value: Tensor) -> Tensor:
        by_asinh = ((value - self.centre.to(value)) / self.width.to(value)).asinh()
        return torch.where(self.kind == 1, self._log(value), torch.where(self.kind == 2, by_asinh, value))

    def _log(self, value: Tensor) -> Tensor:
        """log where values are read so; finite, with gradients that do not overflow, elsewhere and at zero."""
        return value.clamp_min(torch.where(self.kind == 1, 1e-6 * self.low, 1.0).to(value)).log()


def _skewness(values: Tensor) -> Tensor:
    """Third standardised moment (F,) of values (N, F)."""
    far = values - values.mean(0)
    return far.pow(3).mean(0) / far.square().mean(0).clamp_min(1e-300).pow(1.5)
