"""Trainers of policies."""
