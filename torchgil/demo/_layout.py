"""The demo's figures as lines of styled text. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torchgil._formatting import duration
from torchgil.demo._accelerator import Accelerator
from torchgil.demo._contention import Contention, ContentionRow
from torchgil.demo._policies import Policies
from torchgil.demo._scaling import Scaling, ScalingCell

__all__ = ["Line", "Part", "accelerator", "contention", "footer", "header", "policies", "scaling"]

GOOD, BAD, DIM, BOLD = "green", "red", "dim", "bold"


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of text in one of rich's styles."""

    text: str
    style: str = ""


Line = list[Part]


def header(machine: dict[str, Any]) -> list[Line]:
    cores = machine["usable_cores"]
    facts = (
        f"torch {machine['torch']}, Python {machine['python']}, {cores} usable core{'s' * (cores > 1)}, "
        "ops of one thread"
    )
    return [[Part("torchgil demo", BOLD), Part(f": {facts}", DIM)]]


def _title(number: int, question: str, *explanations: str) -> list[Line]:
    return [[], [Part(f"{number}  {question}", BOLD)], *([Part(f"   {text}", DIM)] for text in explanations)]


def policies(result: Policies, width: int) -> list[Line]:
    calls = len(result.runs[0].ops)
    lines = _title(
        1,
        "Who gets the GIL while an op runs?",
        f"{calls} matmuls of {result.size}x{result.size}, {duration(result.op_s)} each, back to back. "
        "Cross: one ended.",
        "Dot: another Python thread, which wakes every millisecond, got the GIL.",
        "Good: dots all the time. Bad: none, nothing else in Python can run.",
    )
    name = max(len(run.policy) for run in result.runs)
    room = max(20, width - name - 16)
    for run in result.runs:
        events = run.events if len(run.events) <= room else run.events[: room - 1] + "…"
        lines.append(
            [
                Part(f"   {run.policy:{name}}  "),
                Part(events, BAD if len(run.ticks) < len(run.ops) else GOOD),
                Part(f"  {len(run.ticks)} dots"),
            ]
        )
    return lines


def scaling(result: Scaling, cores: int) -> list[Line]:
    limit = min(cores, max(cell.threads for cell in result.rows[0].cells))
    lines = _title(
        2,
        "Do threads help?",
        f"Each thread makes {result.calls} calls of 10 ms. Seconds until all have ended; work per",
        "second against one thread; dots of that other thread per second.",
        f"Good: near {limit}x, all that {limit} core{'s' * (limit > 1)} can give, and near "
        f"{result.idle_ticks_per_s:.0f} dots, as when idle.",
        "Bad: 1x, and few dots.",
    )
    threads = [cell.threads for cell in result.rows[0].cells]
    heads = "".join(f"{f'{n} thread' + 's' * (n > 1):>20}" for n in threads)
    lines.append([Part(f"   {'':15}{heads}", DIM)])
    previous = ""
    for row in result.rows:
        line = [Part(f"   {row.op if row.op != previous else '':7}{row.policy:8}")]
        for cell in row.cells:
            line += [
                Part(f"{cell.seconds:8.3f}"),
                Part(f"{cell.speedup:6.2f}x", _speed_style(cell, cores)),
                Part(f"{cell.ticks_per_s:5.0f}", _tick_style(cell.ticks_per_s, result.idle_ticks_per_s)),
            ]
        lines.append(line)
        previous = row.op
    if cores == 1:
        lines.append(
            [Part("   One usable core: threads cannot be faster, a release only lets others in.", DIM)]
        )
    return lines


def _speed_style(cell: ScalingCell, cores: int) -> str:
    limit = min(cell.threads, cores)
    if limit == 1:
        return ""
    if cell.speedup >= 0.8 * limit:
        return GOOD
    return BAD if cell.speedup <= 1.2 else ""


def _tick_style(rate: float, idle: float) -> str:
    return GOOD if rate >= idle / 2 else BAD if rate <= idle / 5 else ""


def contention(result: Contention) -> list[Line]:
    interval, wake_up = result.switch_interval_s, result.wake_up
    lines = _title(
        3,
        "What does a release cost beside one busy Python thread?",
        f"A woken thread runs after {duration(wake_up.p50_s)} here (p99 {duration(wake_up.p99_s)}). "
        "A release that outlasts",
        f"it mostly loses the GIL, and gets it back a switch interval, {duration(interval)}, later.",
        "Good: as fast as alone. Bad: a switch interval, or several.",
    )
    counted = any(row.takes is not None for row in result.rows)
    takes = f"{'takes':>7}" if counted else ""
    lines.append(
        [Part(f"   {'':30}{'alone':>9}{'beside it':>11}{'p99':>9}{'lost':>6}{'it keeps':>10}{takes}", DIM)]
    )
    previous = 0
    for row in result.rows:
        label = f"{row.size}x{row.size}" if row.size != previous else ""
        line = [
            Part(f"   {label:8}{row.call:22}{duration(row.alone_p50_s):>9}"),
            Part(f"{duration(row.p50_s):>11}", _wait_style(row, interval)),
            Part(f"{duration(row.p99_s):>9}{row.lost:>6.0%}{row.busy_kept:>10.0%}"),
        ]
        if counted:
            line.append(Part("" if row.takes is None else f"{row.takes:>7.1f}"))
        lines.append(line)
        previous = row.size
    lines.append([Part("   Medians; results kept but in the first two rows. lost: calls that waited.", DIM)])
    lines.append([Part("   it keeps: what the busy thread did meanwhile, of what it does undisturbed.", DIM)])
    if counted:
        lines.append([Part("   takes: how often a call takes the GIL, counted by torchgil.trace().", DIM)])
    return lines


def _wait_style(row: ContentionRow, interval: float) -> str:
    return BAD if row.p50_s >= interval / 2 else GOOD if row.p50_s <= 3 * row.alone_p50_s else ""


def accelerator(result: Accelerator | str) -> list[Line]:
    question = "And on an accelerator?"
    if isinstance(result, str):
        return _title(4, question, result)
    lines = _title(4, question, f"{result.device}, matmuls of {result.size}x{result.size}")
    for step in result.steps:
        ticks_per_s = step.ticks / step.seconds
        lines.append(
            [
                Part(f"   {step.what:20}{duration(step.seconds):>10}"),
                Part(f"{step.ticks:6} dots, {ticks_per_s:.0f} a second"),
            ]
        )
    return lines


def footer(machine: dict[str, Any]) -> list[Line]:
    """A warning where the figures are worse than the machine is; else nothing."""
    cores = machine["other_load_cores"]
    if cores is None or cores < 0.1:
        return []
    return [
        [],
        [
            Part(f"Other processes took {cores:.1f} cores meanwhile: ", BAD),
            Part("every figure is worse for it."),
        ],
    ]
