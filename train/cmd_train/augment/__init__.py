"""Data augmentation, computed on the training device."""
