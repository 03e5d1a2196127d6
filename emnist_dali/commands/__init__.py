"""The commands, a file each, and what they share in options.py and program.py."""
