"""From a configuration to one opened experiment: the only room that reads its keys."""
