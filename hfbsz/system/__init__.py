"""The operating system and the launcher: standard streams, signals, files, YAML, environment variables."""
