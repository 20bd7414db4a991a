"""Diagnostics for adaptive experiments."""
