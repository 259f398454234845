"""Process groups, collective operations and error files of several ranks."""
