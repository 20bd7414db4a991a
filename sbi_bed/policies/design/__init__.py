"""Policies for adaptive experiments."""
