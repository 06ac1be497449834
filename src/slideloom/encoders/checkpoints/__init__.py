"""Weights on disk: recognised, checked, read without running code."""
