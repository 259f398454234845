"""The library: functions for scripts and notebooks, beside the command line."""
