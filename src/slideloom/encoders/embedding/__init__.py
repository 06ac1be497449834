"""Slides through an encoder: full batches across slides, and the store of tokens that they leave."""
