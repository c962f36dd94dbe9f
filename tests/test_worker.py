"""A worker: one job at a time, Stop comes through, and neither errors nor failing screens lock it."""

import logging
import threading

import pytest

from tune_a_video_nbs.choices import Refused
from tune_a_video_nbs.tune import StopTuning
from tune_a_video_nbs.worker import Worker


def done():
    return "Done."


def fail_on(part, times=1):
    "A screen that fails, the first times it shows a part."
    failures = []

    def on_change(changed):
        if changed == part and len(failures) < times:
            failures.append(changed)
            raise RuntimeError("the widget is closed")

    return on_change


def test_two_jobs_do_not_collide():
    worker = Worker()
    gate = threading.Event()

    def wait():
        assert gate.wait(10)
        return "Waited."

    thread = worker.start("tune", wait)
    assert worker.busy
    assert worker.start("tune", done) is None
    assert worker.start("edit", done) is None
    gate.set()
    thread.join()
    assert worker.status == "Waited."
    assert not worker.busy


def test_stop_comes_through():
    worker = Worker()
    inside = threading.Event()

    def work():
        while True:
            inside.set()
            worker.raise_if_stopped()

    thread = worker.start("tune", work)
    assert inside.wait(10)
    worker.stop()
    thread.join(10)
    assert worker.status == "Stopped before there was anything to keep."
    worker.start("tune", done).join()
    assert worker.status == "Done."  # an old Stop does not count


def test_what_is_refused_is_said_field_by_field():
    worker = Worker()

    def refuse():
        raise Refused({"steps": "no number"})

    worker.start("tune", refuse).join()
    assert "Not begun" in worker.status
    assert worker.problems == {"steps": "no number"}
    worker.start("tune", done).join()
    assert worker.problems == {}


@pytest.mark.parametrize("part", ["problems", "status"])
def test_a_screen_that_fails_at_the_start_frees_the_lock(part):
    "B10: the lock was taken, telling failed, no thread was there to free it; later presses did nothing."
    worker = Worker(fail_on(part))
    with pytest.raises(RuntimeError, match="the widget is closed"):
        worker.start("tune", done)
    assert not worker.busy
    worker.start("tune", done).join()
    assert worker.status == "Done."


def test_a_thread_that_cannot_start_frees_the_lock(monkeypatch):
    def no_thread(self):
        raise RuntimeError("can't start new thread")

    worker = Worker()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="can't start"):
            worker.start("tune", done)
    assert not worker.busy
    worker.start("tune", done).join()
    assert worker.status == "Done."


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_screen_that_fails_at_the_end_frees_the_lock():
    worker = Worker()

    def work():
        worker.on_change = fail_on("status")
        return "Done."

    worker.start("tune", work).join()
    assert not worker.busy
    worker.start("tune", done).join()
    assert worker.status == "Done."


def test_the_traceback_of_a_job_that_fails_is_kept(caplog):
    "B26: only the last line of it was to be seen."

    def burn():
        raise RuntimeError("the disk is on fire")

    worker = Worker()
    with caplog.at_level(logging.ERROR, "tune_a_video_nbs"):
        worker.start("tune", burn).join()
    assert worker.status == "That went wrong: RuntimeError: the disk is on fire"
    assert "in burn" in worker.traceback
    assert "in burn" in caplog.text
    worker.start("tune", done).join()
    assert worker.traceback == ""


def test_a_stopped_job_is_no_failure(caplog):
    def stop():
        raise StopTuning

    worker = Worker()
    worker.start("tune", stop).join()
    assert worker.traceback == ""
    assert not caplog.records


def test_no_old_word_is_written_over_a_new_one():
    "Two threads may show the problems at once: the one that looked first must not write last."
    shown = []
    looked, go_on = threading.Event(), threading.Event()
    worker = Worker()

    def slow(part):
        seen = dict(worker.problems)
        if seen:
            looked.set()
            assert go_on.wait(10)
        shown.append(seen)

    worker.on_change = slow
    first = threading.Thread(target=worker.set_problems, args=((), {"steps": "no number"}))
    second = threading.Thread(target=worker.set_problems, args=(("steps",), {}))
    first.start()
    assert looked.wait(10)
    second.start()  # whether it waits by now or comes later, it may not be first
    go_on.set()
    first.join(10)
    second.join(10)
    assert shown == [{"steps": "no number"}, {}]
    assert worker.problems == {}
