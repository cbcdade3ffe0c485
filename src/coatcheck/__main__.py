"""``python -m coatcheck``: the same as the console script."""

from coatcheck.cli import main

main()
