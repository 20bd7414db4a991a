"""Trainers, live experiments, posteriors. Loaded on use: sbi's posteriors take seconds to import."""

import lazy_loader

from ..utils.renamed import old_names

_RENAMED = {
    "ExperimenterTrainer": "ImitationTrainer",
    "ManyPosteriors": "BatchedPosteriors",
    "many_posteriors": "batched_posteriors",
}

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = old_names(__name__, _RENAMED, __getattr__)
