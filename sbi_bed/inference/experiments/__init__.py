"""Live experiments: ask, record, look at the posterior."""
