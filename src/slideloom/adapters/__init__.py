"""Trainable fronts: channels of an image in, the channels that a network reads out."""
