"""A lock that is passed on in the order in which it was asked for."""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["Lock"]


class Lock:
    """A lock that goes to who has waited longest. ``threading.RLock`` goes to who is awake: a thread that lets go and
    asks again at once, as one that generates does, would keep it for ever.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._owner: int | None = None
        self._depth = 0
        self._waiting: deque[tuple[int, threading.Lock]] = deque()

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for it, so many seconds at most; whether it was to be had. A thread that has it gets it again."""
        me = threading.get_ident()
        turn = threading.Lock()
        with self._mutex:
            if self._owner in (None, me):
                self._owner = me
                self._depth += 1
                return True
            turn.acquire()
            self._waiting.append((me, turn))
        try:
            if turn.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
                return True
        except BaseException:  # Ctrl-C
            if not self._leave(me, turn):
                self.release()
            raise
        return not self._leave(me, turn)

    def release(self) -> None:
        """Give it to who has waited longest, once it was released as often as acquired."""
        with self._mutex:
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                if self._waiting:
                    self._owner, turn = self._waiting.popleft()
                    self._depth = 1
                    turn.release()

    def _leave(self, me: int, turn: threading.Lock) -> bool:
        """Wait no longer; False if it was its turn in that moment."""
        with self._mutex:
            if (me, turn) in self._waiting:
                self._waiting.remove((me, turn))
                return True
            return False
