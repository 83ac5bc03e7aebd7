"""`modelbudget show MODEL`: a model as a table."""

from __future__ import annotations

import json
from argparse import Namespace

from pytest_modelbudget.cli.project import terminal_width
from pytest_modelbudget.cli.targets import Targets
from pytest_modelbudget.reports import table
from pytest_modelbudget.summary.show import records

_MOST_ROWS = 10_000
"""Rows of a table; laying out more takes longer than anybody reads."""


def run(options: Namespace) -> int:
    """Print the model."""
    summary = Targets(options).summary(options.model)
    if options.json:
        print(json.dumps(summary.to_dict(), indent=1))
    elif options.csv:
        print(records.csv_text(summary), end="")
    else:
        text = table.summary_text(
            summary, width=terminal_width(), most=_MOST_ROWS, elsewhere="--json has all", explain=options.why
        )
        print(text)
    return 0
