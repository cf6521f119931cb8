"""One training: its recipe, its plan of updates, the module that takes its steps, and the loop around them."""
