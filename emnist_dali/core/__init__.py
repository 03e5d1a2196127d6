"""What any project would need: errors, atomic writes, locks, ranks, signals, progress, the machine."""
