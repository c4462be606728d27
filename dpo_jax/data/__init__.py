"""From rows of text, pictures or clips to batches: sources, chat formats, tokenization, batches. All of it numpy."""
