"""Floor 0: codes, components, files, the run folder, the log. Imports nothing else of saelab."""
