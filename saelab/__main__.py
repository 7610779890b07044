"""`python -m saelab` is the command `saelab`."""

from saelab.cli import main

main()
