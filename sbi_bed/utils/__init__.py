"""Packing with masks, seeds, saving, tracking."""

from .history import pack_history, unpack_history
from .packing.contexts import pack_context, unpack_context
from .packing.groups import pack_groups, unpack_groups
from .seeding import seeded
from .tracking import NoTracker

__all__ = [
    "NoTracker",
    "pack_context",
    "pack_groups",
    "pack_history",
    "seeded",
    "unpack_context",
    "unpack_groups",
    "unpack_history",
]
