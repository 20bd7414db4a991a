"""Live experiments for adaptive experiments."""
