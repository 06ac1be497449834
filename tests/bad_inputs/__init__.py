"""A corpus of bad input, and the one answer that each kind of it gets."""
