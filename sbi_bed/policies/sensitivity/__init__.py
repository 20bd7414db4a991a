"""Policies for sensitivity to priors and data."""
