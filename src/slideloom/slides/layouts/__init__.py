"""Data sets that other programs laid out, brought in as a sheet and its tables."""
