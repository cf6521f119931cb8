"""The YAML of the plugins; the entry point names this package."""
