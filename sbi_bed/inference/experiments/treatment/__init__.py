"""Live experiments for treatment experiments."""
