"""Waiting for a line at the terminal, and signals that come meanwhile."""

import os
import signal
import threading

import pytest

from gpt2cli.cli.signals import wait_for_input


def test_a_signal_that_another_thread_receives_ends_the_wait() -> None:
    reader, writer = os.pipe()
    thread = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))
    with open(reader, "rb") as stream, open(writer, "wb"):
        with pytest.raises(KeyboardInterrupt):
            thread.start()
            wait_for_input(stream)
        thread.join()
    assert signal.set_wakeup_fd(-1) == -1


def test_a_handler_that_raises_nothing_lets_the_wait_go_on() -> None:
    reader, writer = os.pipe()
    heard = []

    def hear_and_write(number: int, frame: object) -> None:
        heard.append(number)
        os.write(writer, b"a line\n")

    before = signal.signal(signal.SIGUSR1, hear_and_write)
    thread = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1))
    try:
        with open(reader, "rb") as stream:
            thread.start()
            wait_for_input(stream)
            assert stream.readline() == b"a line\n"
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
        os.close(writer)
    assert heard == [signal.SIGUSR1]
