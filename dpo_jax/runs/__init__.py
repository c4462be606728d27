"""A working directory and what lies in it: resume, history, verify."""
