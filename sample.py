"""Pictures from prompts: `python sample.py "a red circle above a blue square"`; see docs/sampling.md."""

import sys

from imagen.cli.sample import main

if __name__ == "__main__":
    sys.exit(main())
