"""Which calls of other people's extensions hold the GIL: a table of docs/findings.md.

    python benchmarks/third_party.py           # every row whose package is installed
    python benchmarks/third_party.py lxml numba

All rows together are kept as results/third_party.json, from which plots.py makes the table. Beside the
audit's verdict stands a witness that knows nothing of it: how often another Python thread, which
wants to run every 0.2 ms, ran during the call. It cannot run while the call holds. The tests
compare both (`pytest -m third_party`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import io
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import harness

import torchgil

Call = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    name: str
    module: str
    package: str  # as its distribution is named
    what: str
    prepare: Callable[[], Call]

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


ROWS: list[Row] = []


def row(module: str, package: str, what: str) -> Callable[[Callable[[], Call]], Callable[[], Call]]:
    def add(prepare: Callable[[], Call]) -> Callable[[], Call]:
        ROWS.append(Row(prepare.__name__, module, package, what, prepare))
        return prepare

    return add


_TEXT = ", ".join(f'"word {i} of some": {i * 0.25}' for i in range(300_000))
_DATA = _TEXT.encode()


@row("orjson", "orjson", "`orjson.loads(bytes)`, 9 MB")
def orjson_loads() -> Call:
    import orjson

    text = b"{" + _DATA + b"}"
    return lambda: orjson.loads(text)


@row("orjson", "orjson", "`orjson.dumps(list)`, 3 M floats")
def orjson_dumps() -> Call:
    import orjson

    numbers = [i * 0.1 for i in range(3_000_000)]
    return lambda: orjson.dumps(numbers)


@row("msgpack", "msgpack", "`msgpack.unpackb(bytes)`, 3 M floats")
def msgpack_unpackb() -> Call:
    import msgpack

    packed = msgpack.packb([i * 0.1 for i in range(3_000_000)])
    return lambda: msgpack.unpackb(packed)


@row("zstandard", "zstandard", "`ZstdCompressor(level=9).compress(bytes)`, 9 MB")
def zstd_compress() -> Call:
    import zstandard

    return lambda: zstandard.ZstdCompressor(level=9).compress(_DATA)


@row("lz4", "lz4", "`lz4.frame.compress(bytes, compression_level=9)`, 9 MB")
def lz4_compress() -> Call:
    import lz4.frame

    return lambda: lz4.frame.compress(_DATA, compression_level=9)


@row("PIL", "pillow", "`Image.resize`, 4000x4000, LANCZOS")
def pillow_resize() -> Call:
    from PIL import Image

    image = Image.new("RGB", (4000, 4000), "red")
    return lambda: image.resize((1000, 1000), Image.Resampling.LANCZOS)


@row("PIL", "pillow", "`Image.save(BytesIO, 'JPEG')`, 4000x4000")
def pillow_jpeg() -> Call:
    from PIL import Image

    image = Image.effect_noise((4000, 4000), 50).convert("RGB")
    return lambda: image.save(io.BytesIO(), "JPEG")


@row("tokenizers", "tokenizers", "`Tokenizer.encode_batch(texts)`, 2,000 texts")
def tokenizers_batch() -> Call:
    import os

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers

    words = {f"word{i}": i for i in range(1000)} | {"[UNK]": 1000}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    texts = [" ".join(f"word{i * 7 % 1100}" for i in range(200))] * 2000
    return lambda: tokenizer.encode_batch(texts)


@row("lxml", "lxml", "`lxml.etree.fromstring(bytes)`, 20 MB")
def lxml_parse() -> Call:
    import lxml.etree

    text = b"<all>" + b"<one kind='a'>some text</one>" * 700_000 + b"</all>"
    return lambda: lxml.etree.fromstring(text)


@row("lxml", "lxml", "`lxml.etree.tostring(tree)`, 20 MB")
def lxml_write() -> Call:
    import lxml.etree

    tree = lxml.etree.fromstring(b"<all>" + b"<one kind='a'>some text</one>" * 700_000 + b"</all>")
    return lambda: lxml.etree.tostring(tree)


@row("regex", "regex", "`regex.search(pattern, str)` that finds nothing, 9 MB")
def regex_search() -> Call:
    import regex

    pattern = regex.compile(r"some other [a-z]+ \d+")
    return lambda: pattern.search(_TEXT)


@row("bcrypt", "bcrypt", "`bcrypt.hashpw`, 10 rounds")
def bcrypt_hash() -> Call:
    import bcrypt

    salt = bcrypt.gensalt(10)
    return lambda: bcrypt.hashpw(b"password", salt)


@row("cryptography", "cryptography", "`PBKDF2HMAC.derive`, 300,000 rounds")
def cryptography_derive() -> Call:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

    return lambda: PBKDF2HMAC(hashes.SHA256(), 32, b"salt" * 4, 300_000).derive(b"password")


@row("rapidfuzz", "rapidfuzz", "`Levenshtein.distance`, two strings of 60,000")
def rapidfuzz_distance() -> Call:
    from rapidfuzz.distance import Levenshtein

    a, b = "abcdefghij" * 6000, "jihgfedcba" * 6000
    return lambda: Levenshtein.distance(a, b)


@row("numexpr", "numexpr", "`numexpr.evaluate`, 10 M doubles")
def numexpr_evaluate() -> Call:
    import numexpr
    import numpy as np

    numexpr.set_num_threads(1)
    x = np.linspace(0, 1, 10_000_000)
    return lambda: numexpr.evaluate("sin(x) ** 2 + cos(x) ** 2", {"x": x})


@row("cffi", "cffi", "`ffi.dlopen(None).usleep(100000)`")
def cffi_call() -> Call:
    import cffi

    ffi = cffi.FFI()
    ffi.cdef("int usleep(unsigned int);")
    c = ffi.dlopen(None)
    return lambda: c.usleep(100_000)


@row("scipy", "scipy", "`scipy.fft.fft`, 4 M complex")
def scipy_fft() -> Call:
    import numpy as np
    import scipy.fft

    x = np.ones(1 << 22, complex)
    return lambda: scipy.fft.fft(x)


@row("scipy", "scipy", "`scipy.spatial.distance.pdist`, 2,000x64")
def scipy_pdist() -> Call:
    import numpy as np
    from scipy.spatial.distance import pdist

    x = np.random.default_rng(0).random((2000, 64))
    return lambda: pdist(x)


@row("numpy", "numpy", "`numpy.sort`, 5 M doubles")
def numpy_sort() -> Call:
    import numpy as np

    x = np.random.default_rng(0).random(5_000_000)
    return lambda: np.sort(x)


@row("numpy", "numpy", "`numpy.array(list)`, 5 M floats")
def numpy_of_list() -> Call:
    import numpy as np

    numbers = [0.5] * 5_000_000
    return lambda: np.array(numbers)


@row("numba", "numba", "`numba.njit(nogil=True)`, a loop")
def numba_nogil() -> Call:
    import numba

    fn = numba.njit(nogil=True)(_count)
    return lambda: fn(100_000_000)


@row("numba", "numba", "`numba.njit`, the same loop")
def numba_plain() -> Call:
    import numba

    fn = numba.njit(_count)
    return lambda: fn(100_000_000)


def _count(n: int) -> float:
    total = 0.0
    for i in range(n):
        total += (i * 0.5) % 3.0
    return total


def turns_of_another_thread(call: Call) -> tuple[int, float]:
    """How often a thread that wants to run every 0.2 ms ran during the call, and how long the call took."""
    turns, stop, started = [0], threading.Event(), threading.Event()

    def tick() -> None:
        started.set()
        while not stop.is_set():
            turns[0] += 1
            time.sleep(0.0002)

    thread = threading.Thread(target=tick)
    thread.start()
    started.wait()
    time.sleep(0.01)
    before, start = turns[0], time.perf_counter()
    call()
    after, seconds = turns[0], time.perf_counter() - start
    stop.set()
    thread.join()
    return after - before, seconds


def judge(r: Row) -> dict[str, Any]:
    call = r.prepare()
    call()
    audits = sorted((torchgil.audit(call) for _ in range(3)), key=lambda a: a.free_fraction)
    a = audits[1]
    turns, seconds = turns_of_another_thread(call)
    return {
        "name": r.name,
        "package": r.package,
        "version": importlib.metadata.version(r.package),
        "what": r.what,
        "verdict": a.verdict,
        "free_fraction": a.free_fraction,
        "releases": a.releases,
        "longest_hold_s": a.longest_hold_s,
        "turns_per_s": turns / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", help="names of packages to import (default: all)")
    parser.add_argument("--json", metavar="FILE", help="where to write (default results/third_party.json)")
    options = parser.parse_args()
    if not options.modules:
        missing = sorted({r.package for r in ROWS if not r.installed})
        harness.stay_where_missing(options, dict.fromkeys(missing), extra="peers")
    done = []
    for r in ROWS:
        if options.modules and r.module not in options.modules:
            continue
        if not r.installed:
            print(f"{r.name:20} not installed: pip install {r.package}")
            continue
        found = judge(r)
        done.append(found)
        print(
            f"{r.name:20} {found['verdict']:9} {100 * found['free_fraction']:5.1f} % free, "
            f"{found['releases']} releases, {found['turns_per_s']:.0f} turns/s of another thread"
        )
    if options.json or not options.modules:
        print(f"written: {harness.save('third_party', done, options.json)}", file=sys.stderr)


if __name__ == "__main__":
    main()
