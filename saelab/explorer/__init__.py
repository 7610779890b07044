"""Floor 7: a local web application that shows what a dictionary learned, and compares dictionaries."""
