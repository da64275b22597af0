"""``python -m imagen.training.compose``: the command; it composes the cascade, so it lives in imagen.cli."""

from __future__ import annotations

import sys

from imagen.cli.compose import main

if __name__ == "__main__":
    sys.exit(main())
