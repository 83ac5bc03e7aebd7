"""`modelbudget show MODEL`: a model as a table."""

from __future__ import annotations

import json
from argparse import Namespace

from pytest_modelbudget.cli.project import width
from pytest_modelbudget.cli.targets import Targets
from pytest_modelbudget.reports import table


def run(options: Namespace) -> int:
    """Print the model."""
    summary = Targets(options).summary(options.model)
    if options.json:
        print(json.dumps(summary.to_dict(), indent=1))
    else:
        print(table.summary_text(summary, width=width(), explain=options.why))
    return 0
