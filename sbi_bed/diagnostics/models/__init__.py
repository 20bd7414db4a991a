"""Diagnostics for model comparison."""
