"""The tables of docs/findings.md, from results/findings/*.json. Pure: data in, text out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from harness import RESULTS

FOLDER = RESULTS / "findings"
Results = Mapping[str, Any]  # torch's version -> what findings.py kept for it, oldest first


def load() -> Results:
    paths = sorted(FOLDER.glob("*.json"), key=lambda path: [int(part) for part in path.stem.split(".")])
    return {path.stem: json.loads(path.read_text()) for path in paths}


def filled(text: str, results: Results, main_torch: str) -> str:
    """The page with its tables as these results have them; details are those of one torch."""
    tables = {
        "by torch": by_torch(results),
        "details": [measured_on(results[main_torch]["machine"]), "", *details(results[main_torch]["rows"])],
        "on a GPU": on_a_gpu(json.loads((RESULTS / "findings_cuda.json").read_text())),
        "third party": third_party(json.loads((RESULTS / "third_party.json").read_text())),
        "measured on": [f"- {measured_on(result['machine'])}" for result in results.values()],
    }

    def fill(found: re.Match[str]) -> str:
        return "\n".join([found["start"], "", *tables[found["name"]], "", found["end"]])

    between = r"(?P<start><!-- findings: (?P<name>[\w ]+) -->)\n.*?(?P<end><!-- end -->)"
    return re.sub(between, fill, text, flags=re.DOTALL)


def by_torch(results: Results) -> list[str]:
    """Verdict and releases, a column per torch; **bold** where they are not the same for all."""
    lines = [
        f"| path | call | {' | '.join(results)} | row |",
        f"|---|---|{'---|' * len(results)}---|",
    ]
    found = {torch: {row["name"]: row for row in result["rows"]} for torch, result in results.items()}
    last = list(found)[-1]
    for name, row in found[last].items():
        answers = [rows.get(name) for rows in found.values()]
        alike = len({(a["verdict"], a["releases"]) if a else None for a in answers}) == 1
        cells = [f"{a['verdict']} {a['releases']}" if a else "" for a in answers]
        if not alike:
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        lines.append(f"| {row['group']} | {row['what']} | {' | '.join(cells)} | `{name}` |")
    return lines


def details(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All that was seen with one torch."""
    lines = [
        "| row | verdict | free | releases | longest hold | ops entered with the GIL |",
        "|---|---|--:|--:|--:|---|",
    ]
    for row in rows:
        held = ", ".join(f"`{name}`" for name in row["ops_entered_held"]) or "none"
        lines.append(
            f"| `{row['name']}` | {row['verdict']} | {100 * row['free_fraction']:.0f} % | "
            f"{row['releases']} | {_duration(row['longest_hold_s'])} | {held} |"
        )
    return lines


def on_a_gpu(result: Mapping[str, Any]) -> list[str]:
    """Where work is queued: who waits for it, and does the GIL wait too?"""
    lines = ["| call | verdict | free | releases | longest hold | row |", "|---|---|--:|--:|--:|---|"]
    lines += [
        f"| {row['what']} | {row['verdict']} | {100 * row['free_fraction']:.0f} % | {row['releases']} | "
        f"{_duration(row['longest_hold_s'])} | `{row['name']}` |"
        for row in result["rows"]
    ]
    return [*lines, "", measured_on(result["machine"])]


def third_party(result: Mapping[str, Any]) -> list[str]:
    """Calls into other people's extensions, by verdict."""
    lines = [
        "| call | package | verdict | free | releases | longest hold |",
        "|---|---|---|--:|--:|--:|",
    ]
    lines += [
        f"| {row['what']} | {row['package']} {row['version']} | {row['verdict']} | "
        f"{100 * row['free_fraction']:.0f} % | {row['releases']} | {_duration(row['longest_hold_s'])} |"
        for row in sorted(result["rows"], key=lambda row: (row["verdict"], row["name"]))
    ]
    return [*lines, "", measured_on(result["machine"])]


def measured_on(machine: Mapping[str, Any]) -> str:
    gpu = f"{machine['gpu']}, " if "gpu" in machine else ""
    return (
        f"torch {machine['torch']}, Python {machine['python']}, {machine['cpu']}, "
        f"{machine['usable_cores']} cores, {gpu}{machine['date']}"
    )


def _duration(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
