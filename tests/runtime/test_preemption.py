"""SIGTERM: heard from the first question on, and only within the training."""

from __future__ import annotations

import os
import signal
import threading

from dpo_jax.runtime.preemption import EXIT_CODE, Notice


def test_hears_of_sigterm_between_its_first_question_and_its_end():
    before = signal.getsignal(signal.SIGTERM)
    with Notice() as notice:
        assert signal.getsignal(signal.SIGTERM) is before  # nothing to save yet: the signal kills
        assert not notice.reached() and not notice.reached()
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.reached() and notice.reached()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_next_training_begins_untold():
    with Notice() as notice:
        notice.reached()
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.reached()
    with Notice() as notice:
        assert not notice.reached()


def test_a_training_in_another_thread_is_left_alone():
    before, heard = signal.getsignal(signal.SIGTERM), []

    def train() -> None:
        with Notice() as notice:
            heard.append(notice.reached())

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert heard == [False] and signal.getsignal(signal.SIGTERM) is before


def test_its_code_is_that_of_a_process_which_the_signal_killed():
    assert EXIT_CODE == 143
