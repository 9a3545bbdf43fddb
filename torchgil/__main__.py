"""``python -m torchgil``: the same as the command ``torchgil``."""

import sys

from torchgil.cli import main

if __name__ == "__main__":
    sys.exit(main())
