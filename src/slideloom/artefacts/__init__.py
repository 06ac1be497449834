"""Artefacts: where they lie, how they are written whole, what they were made from."""
