"""The command line of ``cmd-extract``."""
