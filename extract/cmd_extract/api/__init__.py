"""The Python API: functions for scripts and notebooks."""
