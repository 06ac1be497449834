"""Slides: sheet, readers, pixel sizes, channels, tissue, annotations, grids."""
