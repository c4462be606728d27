"""The commands of experiments on pictures and clips."""
