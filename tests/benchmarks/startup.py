"""What the plugin costs a pytest that does not use it: `python tests/benchmarks/startup.py`.

Starts pytest on an empty project by turns with the plugin and without, and compares the least times of each,
which other work on the machine disturbs least. A comparison to look at, not a test: the price should be below 5 ms.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 30
ONCE = "-m pytest --collect-only -q -p no:cacheprovider -p no:xdist"
WITHOUT = "-p no:modelbudget"


def seconds(flags: str, folder: Path) -> float:
    """How long one start takes, with compiled files of its own as an installed plugin has them."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}
    begin = time.perf_counter()
    subprocess.run([sys.executable, *flags.split()], cwd=folder, env=environment, capture_output=True, check=False)
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = [(seconds(ONCE, folder), seconds(f"{ONCE} {WITHOUT}", folder)) for _ in range(ROUNDS + 1)][1:]
    on, off = (min(times) * 1000 for times in zip(*pairs, strict=True))
    print(f"pytest start: {off:.1f} ms without the plugin, {on:.1f} ms with it: {on - off:+.1f} ms ({ROUNDS} rounds)")


if __name__ == "__main__":
    main()
