"""Pages of the site, one module for each kind: what a template needs, taken from boards and rows."""
