"""The YAML of the task; the entry point names this package."""
