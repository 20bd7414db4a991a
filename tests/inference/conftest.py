"""Journals that a test has opened are closed after it."""

import pytest

from sbi_bed.inference.experiments.journal import Journal


@pytest.fixture(autouse=True)
def close_all(monkeypatch):
    """Close what a test has opened."""
    opened, init = [], Journal.__init__

    def remember(self, path):
        init(self, path)
        opened.append(self)

    monkeypatch.setattr(Journal, "__init__", remember)
    yield
    for journal in opened:
        journal.close()
