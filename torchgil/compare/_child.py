"""The process that measures one contender: `python -m torchgil.compare._child JSON`."""

from __future__ import annotations

import sys

from torchgil.compare._measure import main

if __name__ == "__main__":
    main(sys.argv[1:])
