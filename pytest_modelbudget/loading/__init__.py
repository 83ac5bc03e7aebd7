"""Files that anybody may have written, read as plain data: regular files alone, bounded in size, depth and number.

What is read creates no objects, follows no reference out of the text, and takes time and memory in proportion to the
text. What goes over a bound is refused with the line and what to do about it.
"""

from pytest_modelbudget.loading.files import (
    MOST_BYTES,
    UnreadableFile,
    decode_text,
    is_file,
    non_file_kind,
    open_file,
    read_bytes,
    read_head,
    read_text,
)
from pytest_modelbudget.loading.json_text import read_json
from pytest_modelbudget.loading.toml_text import read_toml_table
from pytest_modelbudget.loading.tree import InvalidText, Keys, Tree
from pytest_modelbudget.loading.yaml_text import read_yaml

__all__ = [
    "MOST_BYTES",
    "InvalidText",
    "Keys",
    "Tree",
    "UnreadableFile",
    "decode_text",
    "is_file",
    "non_file_kind",
    "open_file",
    "read_bytes",
    "read_head",
    "read_json",
    "read_text",
    "read_toml_table",
    "read_yaml",
]
