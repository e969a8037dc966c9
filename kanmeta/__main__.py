"""``python -m kanmeta``: the command line, where the script ``kanmeta`` is not on the PATH."""

from kanmeta.cli import main

main()
