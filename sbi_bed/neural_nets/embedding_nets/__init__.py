"""Embedding nets: x -> summary, invariant where the data are exchangeable."""

from .hierarchical import HierarchicalEmbedding
from .history import HistoryEmbedding

__all__ = ["HierarchicalEmbedding", "HistoryEmbedding"]
