"""What one `a + b` does to the GIL, step by step, from a trace of it.

python examples/four_steps.py [n]        # n x n tensors, 1000 unless told
"""

from __future__ import annotations

import sys

import torch

import torchgil
from torchgil.tracing import op_slices

n = int(sys.argv[1]) if sys.argv[1:] else 1000
a = torch.ones(n, n)
b = torch.ones(n, n)
for _ in range(3):  # warm up
    a + b  # the result is freed at once: the last step

with torchgil.trace() as t:
    a + b

report = t.report()
recording = report.recording
print(f"a + b, {n}x{n}, in microseconds\n     start     length")
lines = [
    ((start - recording.start_ns) / 1e3, (end - start) / 1e3, state.name.lower(), "")
    for segments in report.segments
    for start, end, state in segments
]
for begin, end, name, _, _ in op_slices(recording, recording.threads[0]):
    lines.append(((begin - recording.start_ns) / 1e3, (end - begin) / 1e3, "", name))
for start, length, state, op in sorted(lines):
    print(f"{start:10.2f}  {length:9.2f}  {state or '   ' + op + ' runs'}")
