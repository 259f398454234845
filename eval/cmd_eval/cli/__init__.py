"""The command line of ``cmd-eval``."""
