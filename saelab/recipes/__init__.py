"""What to run: one file per command, each a function that can be called from Python as well."""
