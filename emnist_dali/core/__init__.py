"""What any project would need: errors, whole files, locks, ranks, signals, the machine."""
