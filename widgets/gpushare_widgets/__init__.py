"""Home of the widgets that show in a notebook what is shared."""
