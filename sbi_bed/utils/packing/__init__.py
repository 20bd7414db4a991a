"""Packing of grouped data and of contexts into tensors with masks."""
