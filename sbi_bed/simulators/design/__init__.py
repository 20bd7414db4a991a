"""Simulators for adaptive experiments."""
