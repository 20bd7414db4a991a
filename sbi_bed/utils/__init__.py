"""Packing with masks, seeds, saving, tracking."""

from .history import pack_history, unpack_history
from .seeding import seeded
from .tracking import NoTracker

__all__ = ["NoTracker", "pack_history", "seeded", "unpack_history"]
