"""Splits, losses, stored data, the loop and checkpoints."""
