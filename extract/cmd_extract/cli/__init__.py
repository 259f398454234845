"""The command line ``cmd-extract``."""
