"""Posteriors by likelihood, and checks of them."""
