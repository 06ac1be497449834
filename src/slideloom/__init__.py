"""Slideloom: whole slides, H&E and multiplexed, to nuclei and tables."""

from slideloom._version import __version__

__all__ = ["__version__"]
