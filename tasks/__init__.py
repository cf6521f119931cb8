"""One folder per domain: its data, models, supervised loss, metrics and pictures."""
