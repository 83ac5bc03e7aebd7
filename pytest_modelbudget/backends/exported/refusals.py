"""The one way in which a reader refuses a file."""

from pytest_modelbudget.backends.model_files import DamagedFile

__all__ = ["DamagedFile"]
