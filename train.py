"""Train one stage of the cascade; `python train.py --help` lists every option."""

import sys

from imagen.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
