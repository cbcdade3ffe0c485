"""``python -m coatcheck.engine.ranks SETTINGS``: started by the launcher, once per rank."""

import sys

from coatcheck.engine.ranks.main import main

main(sys.argv[1])
