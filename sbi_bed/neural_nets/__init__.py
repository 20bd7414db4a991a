"""Nets: embedding nets for histories and grouped data, classifiers, and the pieces that policies are made of."""

from .action_report import ActionReport
from .actor import NeuralActor
from .actor_errors import ActorErrors, actor_errors
from .classifiers import EvidenceClassifier
from .embedding_nets.context import ContextEmbedding
from .embedding_nets.hierarchical import HierarchicalEmbedding
from .embedding_nets.history import HistoryEmbedding
from .embedding_nets.population import PopulationEmbedding
from .embedding_nets.responses import ResponseEmbedding
from .learned_perception import LearnedPerception

__all__ = [
    "ActionReport",
    "ActorErrors",
    "ContextEmbedding",
    "EvidenceClassifier",
    "HierarchicalEmbedding",
    "HistoryEmbedding",
    "LearnedPerception",
    "NeuralActor",
    "PopulationEmbedding",
    "ResponseEmbedding",
    "actor_errors",
]
