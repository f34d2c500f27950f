"""`python -m dinoprobe`."""

from dinoprobe.cli import main

main()
