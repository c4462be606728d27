"""From rows of text to batches of token ids: sources, chat formats, tokenization, batches. All of it numpy."""
