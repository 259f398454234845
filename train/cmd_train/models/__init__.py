"""Backbones, encoders, heads and the networks built from them."""
