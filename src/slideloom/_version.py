"""The version, alone in its module so that a bump changes no stage's code fingerprint."""

__version__ = "0.1.0"
