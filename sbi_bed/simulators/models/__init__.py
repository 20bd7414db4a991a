"""Simulators for model comparison."""
