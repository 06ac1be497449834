"""Frozen encoders, their registry, and the store of their tokens."""
