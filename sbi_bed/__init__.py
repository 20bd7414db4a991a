"""Experiments beside sbi: which to run next, which model explains the data, how far to trust the answer."""

import lazy_loader

from ._version import __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
