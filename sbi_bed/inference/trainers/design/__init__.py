"""Trainers for adaptive experiments."""
