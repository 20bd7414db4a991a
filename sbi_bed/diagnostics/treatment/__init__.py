"""Diagnostics for treatment experiments."""
