"""Trainers for model comparison."""
