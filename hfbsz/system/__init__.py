"""What lies outside: standard streams, signals, files on the disk, YAML, and what the launcher said."""
