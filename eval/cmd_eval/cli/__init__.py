"""The commands of ``cmd-eval``."""
