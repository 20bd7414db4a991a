"""Packing with masks, seeds, saving."""

from .history import pack_history, unpack_history
from .seeding import seeded

__all__ = ["pack_history", "seeded", "unpack_history"]
