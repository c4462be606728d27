"""An experiment file, drafted from rows, a model and a machine that are looked at."""
