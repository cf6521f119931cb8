"""Configuration of the toy task, found as that of another package is: through the entry-point group ``kdbench.conf``."""
