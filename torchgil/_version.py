"""The version of torchgil, and its only place."""

__version__ = "0.2.0"
