"""softsign(x) = x / (1 + |x|), under three GIL policies and as torch.ops.my_op.softsign."""

import torch  # noqa: F401  # first: the extension needs its libraries

from my_op._C import adaptive, held, released

__all__ = ["adaptive", "held", "released"]
