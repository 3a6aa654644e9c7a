"""Waiting for a context: a lock that is passed on in the order in which it was asked for, and trying again."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from lloyal.errors import Busy

__all__ = ["Lock", "patiently"]


class Lock:
    """A lock that goes to who has waited longest. ``threading.RLock`` goes to who is awake: a thread that lets go and
    asks again at once, as one that generates does, would keep it for ever.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._owner: int | None = None
        self._depth = 0
        self._waiting: deque[tuple[int, threading.Lock]] = deque()
        self._given: threading.Lock | None = None  # whose turn it became last

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for it, so many seconds at most; whether it was to be had. A thread that has it gets it again."""
        me = threading.get_ident()
        turn = threading.Lock()
        turn.acquire()
        try:
            with self._mutex:
                if self._owner in (None, me):
                    self._owner = me
                    self._depth += 1
                    return True
                self._waiting.append((me, turn))
            if turn.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
                return True
        except BaseException:  # Ctrl-C, before or after it was given to this thread
            if not self._leave(me, turn) and self._given == turn:
                self.release()
            raise
        return not self._leave(me, turn)

    def release(self) -> None:
        """Give it to who has waited longest, once it was released as often as acquired."""
        with self._mutex:
            if self._depth < 1:
                raise RuntimeError("the lock is not held")
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                if self._waiting:
                    self._owner, self._given = self._waiting.popleft()
                    self._depth = 1
                    self._given.release()

    def _leave(self, me: int, turn: threading.Lock) -> bool:
        """Wait no longer; False if it was its turn in that moment."""
        with self._mutex:
            if (me, turn) in self._waiting:
                self._waiting.remove((me, turn))
                return True
            return False


def patiently(call: Callable[[], object]) -> None:
    """Once something is to be brought to its end: again while another thread is inside the context."""
    while True:
        try:
            call()
            return
        except Busy:
            time.sleep(0.001)
