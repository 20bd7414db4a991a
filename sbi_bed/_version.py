"""The version, where setuptools and saved files both find it."""

__version__ = "0.2.0"
