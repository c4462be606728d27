"""From a configuration to one opened experiment, of texts or of pictures, and to the trainings of it."""
