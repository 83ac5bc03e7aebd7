"""`python -m pytest_modelbudget.cli`, for an environment whose scripts are not on the path."""

import sys

from pytest_modelbudget.cli import main

sys.exit(main())
