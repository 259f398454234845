"""Augmentation on the training device."""
