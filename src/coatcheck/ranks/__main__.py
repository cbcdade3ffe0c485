"""``python -m coatcheck.ranks SETTINGS``: started by the launcher, once per rank."""

import sys

from coatcheck.ranks.main import main

main(sys.argv[1])
