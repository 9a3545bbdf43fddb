"""What torch does about the GIL, path by path: the rows of docs/findings.md.

    python benchmarks/findings.py                 # every row (the compiled ones take a minute; those of a
                                                  # GPU only where there is one)
    python benchmarks/findings.py load_path mm    # these rows
    python benchmarks/findings.py --list

All rows together are kept as results/findings/TORCH.json, those of a GPU as results/findings_cuda.json,
from which plots.py makes the page: a column of it for each torch that this ran with.

Each row is the median, by how free the GIL was, of five calls under torchgil.audit, after two to warm
it up, in this process and with nothing else going on in it. "releases" counts the release windows of
one call.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import findings_cuda
import findings_page
import harness
import torch
from findings_rows import ROWS, Row

import torchgil


def judge(r: Row) -> dict[str, Any]:
    call = r.prepare()
    call()
    call()
    audits = sorted((torchgil.audit(call) for _ in range(5)), key=lambda a: a.free_fraction)
    a = audits[len(audits) // 2]
    held = [op.name for op in a.report.ops if op.calls_held and not op.name.startswith("Torch")]
    return {
        "name": r.name,
        "group": r.group,
        "what": r.what,
        "verdict": a.verdict,
        "free_fraction": a.free_fraction,
        "wall_s": a.wall_s,
        "releases": a.releases,
        "longest_hold_s": a.longest_hold_s,
        "ops_entered_held": held,
    }


def here(r: Row) -> bool:
    return r.group != findings_cuda.GROUP or torch.cuda.is_available()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help="names of rows (default: all)")
    parser.add_argument("--list", action="store_true", help="name the rows")
    parser.add_argument("--json", metavar="FILE", help="where to write all rows (default results/findings/)")
    options = parser.parse_args()
    names = {r.name for r in ROWS}
    if unknown := set(options.rows) - names:
        parser.error(f"no row {', '.join(sorted(unknown))}; --list names them")
    if away := [r.name for r in ROWS if r.name in options.rows and not here(r)]:
        parser.error(f"{', '.join(away)}: no CUDA device here")
    if options.list:
        print("\n".join(f"{r.name:20} {r.what}" for r in ROWS))
        return
    done = []
    for r in ROWS:
        if r.name in options.rows or (not options.rows and here(r)):
            harness.progress(r.name)
            done.append(judge(r))
    harness.progress("")
    print("\n".join(findings_page.details(done)))
    if options.rows and not options.json:
        return
    on_cuda = [r for r in done if r["group"] == findings_cuda.GROUP]
    if options.json:
        saved = [harness.save("findings", done, options.json)]
    else:
        kept = findings_page.FOLDER / f"{torch.__version__.split('+')[0]}.json"
        saved = [harness.save("findings", [r for r in done if r not in on_cuda], str(kept))]
        saved += [harness.save("findings_cuda", on_cuda)] if on_cuda else []
    print(f"written: {', '.join(map(str, saved))}", file=sys.stderr)


if __name__ == "__main__":
    main()
