"""Releases too short to pay are not handed over; whoever waits looks, and a long one is theirs still."""

import json

from tests.conftest import run_in_child
from tests.priority.test_balance import BESIDE, TINY
from tests.priority.test_priority import BUSY
from tests.support.retries import once

# A busy thread counts while the main thread, with priority, makes releases from one place of the program.
COUNTS = f"""{BUSY}
from torchgil._gil_half import C
stop, count, handed_over = False, 0, []
def counts():
    global count
    while not stop:
        count += 1
other = threading.Thread(target=counts)
def progress(seconds):
    before = count
    released.sleep(seconds)
    return count - before
with torchgil.gil_priority():
    other.start()
    for _ in range(20):
        released.sleep(0.001)
    {{body}}
    stop = True
other.join()
"""


def test_the_other_side_is_not_switched_to_at_each_of_many_short_releases():
    """Once a millisecond at most, each way, however many releases there are."""

    def check():
        seen = json.loads(run_in_child(BESIDE.format(call=TINY["a window of ours"])).stdout)
        assert seen["answers"] < 2 + seen["busy"] / 0.0005, seen

    once(check)


def test_a_long_release_is_taken_although_the_ones_before_were_short():
    """The busy thread was passed over, and looks by itself: its interval is a hundred seconds here."""
    code = COUNTS.format(
        body="""
    for _ in range(200):
        released.sleep(0)
    print(progress(0.3))"""
    )
    assert int(run_in_child(code).stdout) > 10_000


def test_a_place_whose_releases_have_become_long_is_handed_over_again():
    """One release is passed over; then the holder signals. Found by a look, it would be half of them."""
    code = COUNTS.format(
        body="""
    for _ in range(200):
        released.sleep(0)
    progress(0.02)
    for _ in range(200):
        sum(range(20_000))  # so that the other one waits again
        handed_over.append(progress(0.0005) > 0)
    print(sum(handed_over))"""
    )

    def check():
        assert int(run_in_child(code).stdout) > 160

    once(check)  # others may have the busy thread's core
