"""Nets: embedding nets for histories, and the pieces that policies are made of."""

from .embedding_nets.history import HistoryEmbedding

__all__ = ["HistoryEmbedding"]
