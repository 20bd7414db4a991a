"""Simulators for Bayesian actors."""
