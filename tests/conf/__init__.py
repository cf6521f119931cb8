"""Configuration of the toy task, found as another package's is, by the entry-point group ``kdbench.conf``."""
