"""Trainers for treatment experiments."""
