"""The life of a process on a machine: hosts, signals, watchdog, progress, errors in words."""
