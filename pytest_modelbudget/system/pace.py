"""How fast a long run goes, and how long it will go on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_LONG = 10.0
"""Seconds after which a run is long enough for its rate to mean something."""

_WINDOW = 60.0
"""Seconds that the rate is taken over: the first models wait for frameworks, and later ones may be larger."""

_EVERY = 30.0
"""Seconds between two lines of a log."""


class Pace:
    """The pace of a run over `total` things; `clock` gives seconds."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self._clock = clock
        self._begin = self._logged = clock()
        self._samples = deque([(self._begin, 0)])

    def text(self, number: int) -> str:
        """`[3/30]` when the thing of that number begins; in a long run `[1,234/100,000] 41/s, about 40 min left ·`."""
        now, done = self._clock(), number - 1
        if now - self._samples[-1][0] >= 1:
            self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[1][0] > _WINDOW:
            self._samples.popleft()
        return f"[{number:,}/{self.total:,}]{self._rate_text(now, done)}"

    def is_due(self) -> bool:
        """Whether it is time for another line where all lines stay, which it is then not for a while."""
        now = self._clock()
        if now - self._logged < _EVERY:
            return False
        self._logged = now
        return True

    def is_long(self) -> bool:
        """Whether the run has gone on for long enough to say how fast it goes."""
        return self._clock() - self._begin >= _LONG

    def _rate_text(self, now: float, done: int) -> str:
        since, before = self._samples[0]
        if not self.is_long() or done <= before or now <= since:
            return ""
        rate = (done - before) / (now - since)
        shown = f"{rate:,.0f}/s" if rate >= 9.5 else f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"
        return f" {shown}, {time_left((self.total - done) / rate)} ·"


def time_left(seconds: float) -> str:
    """`about 40 min left`, with no more digits than anybody can know."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute left"
    if minutes < 60:
        return f"about {minutes} min left"
    hours, rest = divmod(minutes, 60)
    return f"about {hours} h left" if hours >= 10 or not rest else f"about {hours} h {rest} min left"
