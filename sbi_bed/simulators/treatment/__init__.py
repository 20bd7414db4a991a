"""Simulators for treatment experiments."""
