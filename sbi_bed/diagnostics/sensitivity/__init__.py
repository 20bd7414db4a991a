"""Diagnostics for sensitivity to priors and data."""
