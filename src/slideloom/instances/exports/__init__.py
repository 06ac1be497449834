"""Nuclei as files for other programs: QuPath, AnnData and SpatialData, made of the labels and the cell table."""
