"""Flax NNX models: they return hidden states and their unembedding, never logits."""
