"""Diagnostics for Bayesian actors."""
