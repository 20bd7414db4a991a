"""Trainers of policies, and of nets that compare models."""
