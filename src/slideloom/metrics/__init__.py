"""Figures of merit: instances, pixels and classes of one slide against its annotation."""
