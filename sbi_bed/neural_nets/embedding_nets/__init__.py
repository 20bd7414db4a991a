"""Embedding nets: x -> summary, invariant where the data are exchangeable."""

from .context import ContextEmbedding
from .hierarchical import HierarchicalEmbedding
from .history import HistoryEmbedding

__all__ = ["ContextEmbedding", "HierarchicalEmbedding", "HistoryEmbedding"]
