"""A manifest as plain data, with the line of every key; YAML or TOML."""

from pytest_modelbudget.loading import InvalidText, Keys, Tree, read_yaml
from pytest_modelbudget.loading import read_toml_table as read_toml

__all__ = ["InvalidText", "Keys", "Tree", "read_toml", "read_yaml"]
