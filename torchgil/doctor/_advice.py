"""The facts in words, and what they call for. Pure."""

from __future__ import annotations

from typing import Any

from torchgil._formatting import duration

__all__ = ["advice", "render"]


def advice(facts: dict[str, Any]) -> list[str]:
    """What the facts call for; nothing where all is well."""
    cores, intra = facts["cores_usable"], facts["intra_op_threads"]
    found = []
    found += [facts[error] for error in ("extension_error", "torch_error") if facts[error]]
    if not facts["gil"]:
        found.append("this Python runs without a GIL: there is none to release, hold or wait for")
    if intra is None:
        pass  # no torch
    elif intra > cores:
        found.append(
            f"oversubscribed: one op uses {intra} intra-op threads, but only {cores} cores are usable "
            f"(affinity, control group): torch.set_num_threads({cores}), or OMP_NUM_THREADS={cores}"
        )
    elif intra > 1:
        found.append(
            f"each Python thread that runs ops has {intra} intra-op threads of its own: 2 of them make "
            f"{2 * intra} busy threads on {cores} cores. torchgil.ThreadPool divides the cores; by hand: "
            f"torchgil.intra_op_threads({max(1, cores // 2)}) in each of 2 workers"
        )
    if len(facts["openmp_runtimes"]) > 1:
        found.append(
            f"{len(facts['openmp_runtimes'])} OpenMP runtimes are loaded, each with threads of its own; "
            "their numbers of threads are set apart from each other"
        )
    if facts["wakeup_p99_s"] is not None and facts["wakeup_p99_s"] > 1e-3:
        found.append(
            f"a woken thread sometimes takes {duration(facts['wakeup_p99_s'])} to run: other work has the "
            "cores, so measure again in a quiet hour before you compare times"
        )
    missing = [name for name, works in facts["witnesses"].items() if not works]
    if missing and facts["gil"]:
        found.append(f"not seen here: {', '.join(missing)}")
    return found


def render(facts: dict[str, Any]) -> str:
    """The facts as text, one line each, with what they mean."""
    cores = f"{facts['cores_usable']} usable, of {facts['cores_online']} online"
    if facts["cores_affinity"] is not None:
        cores += f" ({facts['cores_affinity']} by affinity)"
    interval = duration(facts["switch_interval_s"])
    threads = f"{facts['intra_op_threads']} intra-op, {facts['inter_op_threads']} inter-op"
    lines = [
        ("torch", facts["torch"] or "none that can be imported"),
        ("Python", f"{facts['python']}, {'with the GIL' if facts['gil'] else 'without a GIL'}"),
        ("machine", f"{facts['machine']}, {facts['cpu']}"),
        ("cores", cores),
        *([("threads", threads)] if facts["intra_op_threads"] else []),
        (
            "environment",
            ", ".join(f"{k}={v}" for k, v in facts["environment"].items()) or "nothing about threads",
        ),
        ("OpenMP", ", ".join(facts["openmp_runtimes"]) or "no runtime found"),
        ("switch interval", interval),
    ]
    if facts["wakeup_p50_s"] is not None:
        p50, p99 = duration(facts["wakeup_p50_s"]), duration(facts["wakeup_p99_s"])
        lines.append(("thread wake-up", f"p50 {p50}, p99 {p99}"))
        meaning = (
            f"a release over {p50} beside a busy Python thread mostly costs a switch interval, {interval}"
        )
        lines.append(("", meaning))
        why_not = facts["gil_priority_unavailable"]
        lines.append(("gil_priority()", f"does nothing here: {why_not}" if why_not else "works here"))
        if not why_not:
            known_by = (
                "entry points" if facts["gil_priority_sees_own_releases"] else "waits for the GIL alone"
            )
            lines.append(("", f"threads that come back from time.sleep, sockets, locks: by their {known_by}"))
    for name, works in facts["witnesses"].items():
        lines.append(("seen here" if works else "NOT seen here", name))
    lines += [("note", note) for note in facts["notes"]]
    lines += [("advice", text) for text in advice(facts)]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines)
