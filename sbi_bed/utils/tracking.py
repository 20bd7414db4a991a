"""A tracker that keeps nothing, for sbi's trainers, whose default one makes a folder `sbi-logs` where it is built."""

from __future__ import annotations

from typing import Any

__all__ = ["NoTracker"]


class NoTracker:
    """sbi's `Tracker` protocol, with nothing written.

    Example:
        >>> from sbi.inference import NPE
        >>> inference = NPE(tracker=NoTracker(), show_progress_bars=False)
    """

    log_dir: str | None = None

    def log_metric(self, name: str, value: float, step: int | None = None) -> None:
        """Forget a number."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Forget several numbers."""

    def log_params(self, params: dict[str, Any]) -> None:
        """Forget settings."""

    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        """Forget a picture."""

    def flush(self) -> None:
        """Nothing to flush."""
