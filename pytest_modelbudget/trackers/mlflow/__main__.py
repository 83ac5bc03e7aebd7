"""`python -m pytest_modelbudget.trackers.mlflow send [ROOT]`: send what the outbox holds."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_modelbudget.trackers.mlflow import send_outbox

if __name__ == "__main__":
    if sys.argv[1:2] != ["send"] or len(sys.argv) > 3:
        sys.exit("usage: python -m pytest_modelbudget.trackers.mlflow send [ROOT]")
    sys.exit(send_outbox(Path(sys.argv[2] if len(sys.argv) == 3 else ".")))
