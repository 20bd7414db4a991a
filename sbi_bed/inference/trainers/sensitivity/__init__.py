"""Trainers for sensitivity to priors and data."""
