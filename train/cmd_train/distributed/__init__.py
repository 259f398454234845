"""Process groups, gathering, errors of ranks."""
