"""Posteriors by likelihood and over models, ensembles, and checks of them."""
