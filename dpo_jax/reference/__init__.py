"""The reference is a store, not a model: its log-probs are computed once, written with Orbax, and read by row id."""
