"""``python -m imagen.text.cache``: the command; it reads training configurations, so it lives in imagen.cli."""

from __future__ import annotations

import sys

from imagen.cli.text_cache import main

if __name__ == "__main__":
    sys.exit(main())
