"""Simulators for sensitivity to priors and data."""
