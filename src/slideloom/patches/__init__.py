"""Patches: pixels, targets and channel statistics of every tile, in Zarr."""
