"""Videos, splits and leakage checks."""
