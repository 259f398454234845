"""Result files and text tables."""
