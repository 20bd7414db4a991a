"""Packing with masks, seeds, saving, tracking."""

from .history import pack_history, unpack_history
from .packing import pack_groups, unpack_groups
from .seeding import seeded
from .tracking import NoTracker

__all__ = ["NoTracker", "pack_groups", "pack_history", "seeded", "unpack_groups", "unpack_history"]
