# my_op

`softsign(x) = x / (1 + |x|)` as a PyTorch op in C++ that releases the GIL, with a test that keeps it so.

    pip install --no-build-isolation -e .    # again after a change of csrc/my_op.cpp
    pytest

`my_op.released.softsign(x)` releases the GIL while it runs, `held` keeps it, `adaptive` keeps it for short work;
`torch.ops.my_op.softsign(x)` is the way of torch.compile. To make it yours: put your kernel in the place of
`softsign_cpu`, its derivative in `Softsign`, your schema in `TORCH_LIBRARY`. docs/writing_ops.md of torchgil says why each line is there.
