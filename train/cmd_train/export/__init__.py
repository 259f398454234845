"""Export of a backbone: weights in a common format, with a model card."""
