"""The steps of a training one after the other, with a progress bar, until all are done or the time is up."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tqdm.auto import tqdm

__all__ = ["Steps"]


class Steps:
    """Iterates over steps: (step, share of the training behind, of steps or of time, whichever is larger).

    Args:
        num_steps: Steps of the whole training, counted from 0.
        label: What the bar says.
        start: The first step to take, where a training goes on.
        max_seconds: Time limit; none if None.
        begin: When the training began, by `time.perf_counter`; now if None.
        show: Whether to show the bar.

    Attributes:
        taken: Steps taken, the present one included.
    """

    def __init__(
        self,
        num_steps: int,
        label: str,
        start: int = 0,
        max_seconds: float | None = None,
        begin: float | None = None,
        show: bool = True,
    ):
        self._num, self._max_seconds, self.taken = num_steps, max_seconds, start
        self._bar = tqdm(range(start, num_steps), label, num_steps, initial=start, disable=not show)
        self._begin = time.perf_counter() if begin is None else begin

    def __iter__(self) -> Iterator[tuple[int, float]]:
        for step in self._bar:
            used = 0.0 if self._max_seconds is None else (time.perf_counter() - self._begin) / self._max_seconds
            if used >= 1:
                return
            self.taken = step + 1
            yield step, max(step / self._num, used)

    def every(self, num: int) -> bool:
        """Whether the present step is one of every `num`, or the last of all."""
        return self.taken % num == 0 or self.taken == self._num

    def say(self, name: str, values: list[float]) -> None:
        """Write the mean of the last ten of some values behind the bar."""
        last = values[-10:]
        self._bar.set_postfix({name: f"{sum(last) / len(last):.4g}"})
