"""The commands and their table."""
