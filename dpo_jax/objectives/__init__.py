"""Losses joined to a model's forward pass: what a training minimises."""
