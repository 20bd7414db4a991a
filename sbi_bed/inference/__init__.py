"""Trainers, live experiments, posteriors. Loaded on use: sbi's posteriors take seconds to import."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
