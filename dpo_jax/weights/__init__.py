"""Weights and tokenizers: Hugging Face folders both ways, GGUF files in."""
