"""`python -m star_cli`: the same as `star`."""

from star_cli.cli.app import main

main()
