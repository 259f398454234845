"""The command line of ``cmd-train``."""
