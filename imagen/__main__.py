"""``python -m imagen``: the list of all commands; ``python -m imagen NAME ...`` is one of them."""

from __future__ import annotations

import sys

from imagen.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
