"""The encoders of CellViT: a plain vision transformer and SAM's image encoder, from all their published files."""
