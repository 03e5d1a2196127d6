"""The commands, a file each: options and nothing else. The work is in the folders below."""
