"""Collections from events: where they begin and end, and what of them was held."""

from __future__ import annotations

import pytest

from tests.tracing.test_report import MS, report
from torchgil.tracing._chrome import chrome_events
from torchgil.tracing._collecting import intervals
from torchgil.tracing._states import since
from torchgil.tracing._timeline import COLLECTING, longest


def test_a_collection_is_from_its_start_to_its_end_and_partly_held():
    r = report("0 acquire, 10 collect 2, 20 release, 25 request, 30 acquire, 50 collected 2")
    (row,) = r.threads
    seen = row.collections
    assert (seen.wall_s, seen.held_s, seen.free_s) == pytest.approx((0.04, 0.03, 0.005))
    assert (seen.count, seen.releases, seen.generation, seen.longest_s) == (1, 1, 2, pytest.approx(0.04))
    assert r.collections == seen


def test_several_are_summed_up_and_the_longest_one_gives_the_generation():
    r = report(
        "0 acquire, 10 collect 0, 11 collected 0, 20 collect 1, 24 collected 1, 25 release",
        "30 acquire, 31 collect 2, 33 collected 2, 40 release",
    )
    assert (r.collections.count, r.collections.generation) == (3, 1)
    assert (r.collections.wall_s, r.collections.longest_s) == pytest.approx((0.007, 0.004))
    assert [t.collections.count for t in sorted(r.threads, key=lambda t: t.ident)] == [2, 1]
    assert "3 garbage collections, 7.00 ms in all, the longest 4.00 ms of generation 1 (in thread" in str(r)
    assert r.hints == ()


def test_one_without_a_start_began_before_and_one_without_an_end_goes_on():
    text = "0 acquire, 10 collected 2, 90 collect 1"
    (thread,) = report(text).recording.threads
    (segments,) = report(text).segments
    assert list(intervals(thread, segments)) == [(0, 10 * MS, 2), (90 * MS, 100 * MS, 1)]


def test_what_is_cut_off_or_was_dropped_is_not_counted():
    text = "0 acquire, 10 collect 2, 30 collected 2, 40 collect 0, 60 collected 0"
    assert report(text, complete_until_ns=20 * MS, dropped=1).collections.wall_s == pytest.approx(0.01)
    assert report(text, complete_until_ns=35 * MS, dropped=1).collections.count == 1
    recording = since(report(text).recording, 20 * MS)
    (thread,) = recording.threads
    assert list(intervals(thread, [(20 * MS, 100 * MS, 2)])) == [
        (20 * MS, 30 * MS, 2),
        (40 * MS, 60 * MS, 0),
    ]
    open_at_the_cut = since(report("0 acquire, 10 collect 2").recording, 20 * MS)
    assert list(intervals(open_at_the_cut.threads[0], [(20 * MS, 100 * MS, 2)])) == [(20 * MS, 100 * MS, 2)]


def test_a_long_one_gets_a_hint_with_the_mend():
    (hint,) = report("0 acquire, 10 collect 2, 60 collected 2").hints
    assert hint.startswith("thread 1 was in a garbage collection of generation 2, 50.0 ms, 50.0 ms of it")
    assert "gc.freeze()" in hint
    assert "gc.collect()" in hint


def test_the_pictures_have_a_line_along_each_and_say_what_it_is(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    def blue(text):
        """How much of the picture's width the widest row of the line's colour has, left and right."""
        report(text).plot(tmp_path / "timeline.png")
        pixels = imread(tmp_path / "timeline.png")[..., :3]
        colour = [int(COLLECTING[1][at : at + 2], 16) / 255 for at in (1, 3, 5)]
        found = (abs(pixels - colour) < 0.05).all(-1)
        middle = found.shape[1] // 2
        return found[:, :middle].sum(1).max() / middle, found[:, middle:].sum(1).max() / middle

    collected, none = "0 acquire, 60 collect 2, 90 collected 2", "0 acquire"
    assert blue(none) == (0, 0)
    left, right = blue(collected)
    assert right > 0.4 > left == 0  # the legend's patch is small
    assert f'fill="{COLLECTING[1]}"' in report(collected)._repr_html_()
    assert COLLECTING[0] in report(collected)._repr_html_()
    assert COLLECTING[0] not in report(none)._repr_html_()


def test_of_many_the_pictures_show_the_longest():
    short = ", ".join(f"{n / 100} collect 0, {n / 100 + 0.001} collected 0" for n in range(4000))
    r = report(f"0 acquire, {short}, 90 collect 2, 95 collected 2")
    assert r.collections.count == 4001
    shown = longest(r.recording.threads[0], r.segments[0])
    assert len(shown) == 500
    assert shown[-1] == (90 * MS, 95 * MS)
    assert shown == sorted(shown)


@pytest.mark.parametrize("ops", [True, False])
def test_the_chrome_trace_has_a_lane_of_them_where_there_are_any(ops):
    events = list(
        chrome_events(report("0 acquire, 10 collect 2, 30 release, 35 collected 2", "0 release"), ops=ops)
    )
    names = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    assert [name for name in names if "garbage" in name] == ["thread 1: garbage collections"]
    (one,) = (e for e in events if e.get("cat") == "gc")
    assert (one["name"], one["ts"], one["dur"]) == ("garbage collection of generation 2", 10_000, 25_000)
    assert one["tid"] == names["thread 1: garbage collections"] < 2**31
    assert len(set(names.values())) == len(names)
