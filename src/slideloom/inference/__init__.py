"""Tiles to slide-wide maps."""
