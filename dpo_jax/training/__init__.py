"""The training machinery: generic, it never learns that preferences exist."""
