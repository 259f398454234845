"""Backbones, encoders, heads and the networks made of them."""
