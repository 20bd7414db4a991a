"""Nets: embedding nets for histories and grouped data, classifiers, and the pieces that policies are made of."""

from .classifiers import EvidenceClassifier
from .embedding_nets.hierarchical import HierarchicalEmbedding
from .embedding_nets.history import HistoryEmbedding

__all__ = ["EvidenceClassifier", "HierarchicalEmbedding", "HistoryEmbedding"]
