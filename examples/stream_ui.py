"""A program that streams a model's words to a user interface, as its authors wrote it, mended by one line.

    python examples/stream_ui.py

`generate()` runs in a thread and a TextIteratorStreamer hands the words over, as Hugging Face's documentation
has it; the main thread redraws its window all the time. Each of the model's three hundred small ops gives the
GIL up and waits up to 5 ms to get it back. With `torchgil.gil_priority()` around the thread's call it gets it
at once.
A Llama with random weights (needs transformers: pip install 'torchgil[generate]'; nothing is downloaded).
"""

from __future__ import annotations

import itertools
import os
import queue
import statistics
import threading
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import torch
from generate import WORDS, language_model

import torchgil

TOKENS = 12


def tokenizer() -> Any:
    """One word for each token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"word{i}": i for i in range(WORDS)}, unk_token="word0"))
    return PreTrainedTokenizerFast(tokenizer_object=words)


def redraw(text: str) -> int:
    """A window's worth of layout, in Python."""
    return sum(len(line) * i for i, line in enumerate(text.split() * 100))


def stream(model: Any, words: Any, generate: Any) -> tuple[str, float, float]:
    """The text, the seconds between two words (median), and how many windows were drawn a second."""
    from transformers import TextIteratorStreamer

    streamer = TextIteratorStreamer(words, skip_prompt=True, timeout=0)
    options = {"streamer": streamer, "max_new_tokens": TOKENS, "do_sample": False}
    thread = threading.Thread(target=generate, args=(torch.tensor([[1, 2, 3, 4]]),), kwargs=options)
    text, times, frames = "", [time.perf_counter()], 0
    thread.start()
    while True:  # the user interface's own loop: it never waits
        frames += bool(redraw(text))
        try:
            text += next(streamer)
        except queue.Empty:
            continue
        except StopIteration:
            break
        times.append(time.perf_counter())
    thread.join()
    gaps = [after - before for before, after in itertools.pairwise(times)]
    return text, statistics.median(gaps), frames / (times[-1] - times[0])


def main() -> None:
    model, words = language_model(), tokenizer()
    model.generate(
        torch.tensor([[1, 2, 3, 4]]), max_new_tokens=2, do_sample=False
    )  # what a first call sets up
    texts = set()
    for name, generate in (
        ("as it was", model.generate),
        ("gil_priority()", torchgil.gil_priority()(model.generate)),
    ):
        text, gap, frames = stream(model, words, generate)
        texts.add(text)
        print(f"{name:16}{1e3 * gap:8.1f} ms from word to word, {frames:6.0f} windows drawn a second")
    print("the same text" if len(texts) == 1 else f"other texts: {texts}")


if __name__ == "__main__":
    main()
