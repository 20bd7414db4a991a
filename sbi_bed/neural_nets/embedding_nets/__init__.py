"""Embedding nets: x -> summary, invariant where the data are exchangeable."""

from .history import HistoryEmbedding

__all__ = ["HistoryEmbedding"]
