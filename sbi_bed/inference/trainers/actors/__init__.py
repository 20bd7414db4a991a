"""Trainers for Bayesian actors."""
