"""Trained decoders: token maps and images in, dense maps out."""
