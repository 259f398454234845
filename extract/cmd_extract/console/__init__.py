"""What the three command lines share: the command group, progress displays, text tables."""
