"""How every benchmark here measures: fresh processes, rounds in turn, medians, JSON.

A benchmark declares configurations; each runs in a process of its own, one after
the other and round after round (A B C A B C ...), so that drift of the machine
meets all of them alike. Figures are compared within one run only.

With --quick the processes are forks of one that has imported torch, and there are fewer of them.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Child = Callable[[dict[str, Any]], Any]
FORMAT = 1
RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(Path(__file__).parent.parent))  # a tree built in place need not be installed


def machine(peers: Mapping[str, str | None] | None = None) -> dict[str, Any]:
    """What the figures depend on, and the command line that asked for them."""
    import torch

    import torchgil

    model = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return {
        "cpu": model,
        "usable_cores": torchgil.usable_cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchgil": torchgil.__version__,
        "commit": commit.stdout.strip() or None,
        "date": time.strftime("%Y-%m-%d"),
        "command": command_line(),
        **({"peers": dict(peers)} if peers else {}),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def command_line() -> str:
    """As it can be given again, from the project's folder: without the paths of this machine."""
    root = Path(__file__).parent.parent

    def relative(word: str) -> str:
        path = Path(word)
        if not path.is_absolute():
            return word
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name

    words = [str(Path(sys.argv[0]).resolve()), *sys.argv[1:]]
    return shlex.join(["python", *map(relative, words)])


def versions(*peers: str) -> dict[str, str | None]:
    """Of other projects' packages, by their names on PyPI; None: it is not installed."""
    found: dict[str, str | None] = {}
    for peer in peers:
        try:
            found[peer] = importlib.metadata.version(peer)
        except importlib.metadata.PackageNotFoundError:
            found[peer] = None
    return found


def stay_where_missing(
    options: argparse.Namespace, peers: Mapping[str, str | None], extra: str = "bench"
) -> None:
    """Ends the process where a peer is missing, so that results with it are not replaced by some without.

    With --json or --quick, which replace none, all that is here is measured.
    """
    missing = [peer for peer, version in peers.items() if version is None]
    if missing and not options.json:
        print(
            f"not measured, and benchmarks/results stays as it is: {', '.join(missing)} missing: "
            f"pip install 'torchgil[{extra}]', or give --json FILE to measure without"
        )
        raise SystemExit(0)


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, nearest rank: an observed value, never an invented one."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes and number of rounds of one configuration."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": len(values),
    }


def run_child(
    script: str, configuration: Mapping[str, Any], *, threads: int = 1, timeout: float = 300
) -> Any:
    """Runs `script --child '{configuration}'` in a fresh process; returns the JSON it prints last."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    root = str(Path(__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, script, "--child", json.dumps(configuration)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
    )
    if done.returncode != 0:
        raise SystemExit(f"{script} failed for {dict(configuration)}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


quick: Child | None = None  # with --quick: what the script's children do


def run_quick(
    child: Child, configuration: Mapping[str, Any], *, threads: int = 1, timeout: float = 300
) -> Any:
    """As run_child, in a fork of a process that has imported torch: most of a short measurement is that."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.export"])
    results, out = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile("r+") as log:
        process = context.Process(target=_forked, args=(child, configuration, threads, log.name, out))
        process.start()
        out.close()
        try:
            if not results.poll(timeout):
                raise SystemExit(f"no result within {timeout:.0f} s for {dict(configuration)}")
            return results.recv()
        except EOFError:
            raise SystemExit(f"failed for {dict(configuration)}:\n{log.read()}") from None
        finally:
            process.kill()
            process.join()


def _forked(child: Child, configuration: dict[str, Any], threads: int, log: str, results: Connection) -> None:
    import torch

    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(threads)
    results.send(child(configuration))


def interleave(
    script: str, configurations: Mapping[str, Mapping[str, Any]], *, rounds: int, threads: int = 1
) -> dict[str, list[Any]]:
    """Each configuration's result of each round; the rounds visit all in turn."""
    measure = functools.partial(run_quick, quick) if quick else functools.partial(run_child, script)
    results: dict[str, list[Any]] = {name: [] for name in configurations}
    done, begun = 0, time.monotonic()
    for number in range(rounds):
        for name, configuration in configurations.items():
            left = (rounds * len(configurations) - done) * (time.monotonic() - begun) / max(done, 1)
            estimate = f", some {left // 60:.0f} min {left % 60:.0f} s left" if done else ""
            progress(f"{Path(script).stem}, round {number + 1}/{rounds}: {name}{estimate}")
            results[name].append(measure(configuration, threads=threads))
            done += 1
    progress("")
    return results


def compile_cpp(source: str, folder: str) -> None:
    """Makes `source`, a module in this directory, importable from `folder`; built as torchgil itself is."""
    import torch

    here, torch_root = Path(__file__).parent, Path(torch.__file__).parent
    includes = [
        here.parent / "csrc",
        here.parent / "torchgil" / "include",
        torch_root / "include",
        sysconfig.get_path("include"),
    ]
    libraries = torch_root / "lib"
    progress(f"compiling {source}")
    subprocess.run(
        ["c++", "-std=c++20", "-O3", "-DNDEBUG", "-fPIC", "-shared", "-fvisibility=hidden"]
        + [f"-I{include}" for include in includes]
        + [str(here / source), f"-L{libraries}", f"-Wl,-rpath,{libraries}"]
        + ["-ltorch_python", "-ltorch_cpu", "-lc10"]
        + ["-o", f"{folder}/{Path(source).stem}{sysconfig.get_config_var('EXT_SUFFIX')}"],
        check=True,
    )


def progress(text: str) -> None:
    """One line that is overwritten; nothing when stderr is no terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def save(
    name: str, rows: Any, path: str | None = None, *, peers: Mapping[str, str | None] | None = None
) -> Path:
    """Writes benchmarks/results/NAME.json, or `path`, with the versions of the peers that were measured."""
    target = Path(path) if path else RESULTS / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(
        json.dumps({"format": FORMAT, "benchmark": name, "machine": machine(peers), "rows": rows}, indent=1)
        + "\n"
    )
    return target


def main(
    doc: str | None,
    child: Child,
    parent: Callable[[argparse.Namespace], None],
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> None:
    """The command line of a benchmark: the parent's, or with --child one configuration's."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes per configuration (default 5)")
    parser.add_argument(
        "--quick", action="store_true", help="one short round of the main rows: to see that it runs"
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="where to write the results (default benchmarks/results/; with --quick build/bench/)",
    )
    parser.add_argument("--child", metavar="JSON", help=argparse.SUPPRESS)
    add_options(parser)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(child(json.loads(options.child))))
    else:
        if options.quick:
            global quick
            options.rounds, quick = 1, child
            script = Path(sys.argv[0])
            options.json = options.json or str(
                script.resolve().parents[1] / f"build/bench/{script.stem}.json"
            )
        parent(options)
