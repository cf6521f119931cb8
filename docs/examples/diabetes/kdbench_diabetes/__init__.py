"""A regression task for kdbench, in a package of its own."""
