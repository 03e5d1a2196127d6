"""The program where something of Linux is missing, as on Windows and macOS; see `elsewhere.py`."""
