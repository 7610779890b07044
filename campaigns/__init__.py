"""Long random trials of what saelab promises: `make campaign`, or one alone by `python -m campaigns.kills --help`."""
