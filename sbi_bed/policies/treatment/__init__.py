"""Policies for treatment experiments."""
