"""The version, where setuptools and saved files both find it."""

__version__ = "0.1.0"
