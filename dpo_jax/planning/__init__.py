"""Machines that are not here, and what a program compiled for one needs; it knows nothing of preferences."""
