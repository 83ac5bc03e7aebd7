"""The files of the base, as they were committed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from pytest_modelbudget.base.git import Blobs, Git
from pytest_modelbudget.base.where import BaseCommit
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import MOST_BYTES, UnreadableFile, decode_text

_SUFFIXES = (".yaml", ".yml", ".toml")


class Base:
    """Manifests and snapshots of the base commit; paths are relative to the root, with forward slashes.

    Any number of files is read by two processes: one lists them, one gives their contents. Both start when they are
    first needed.
    """

    def __init__(self, root: Path, where: BaseCommit) -> None:
        self.root, self.where = root, where
        self._blobs: Blobs | None = None

    @property
    def _git(self) -> Git:
        return Git(self.root, known=True)  # the base was found in it

    @cached_property
    def files(self) -> dict[str, str]:
        """Every YAML and TOML file with its blob.

        Raises:
            ModelBudgetError: the base cannot be listed.
        """
        blob_ids = self._git.files(self.where.commit) if self.where.commit else {}
        if blob_ids is None:
            raise ModelBudgetError(f"the files of {self.where.name} are not in this clone (a partial one)")
        return {path: blob for path, blob in blob_ids.items() if path.endswith(_SUFFIXES)}

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        paths_by_name: dict[str, list[str]] = {}
        for path in self.files:
            paths_by_name.setdefault(path.rpartition("/")[2], []).append(path)
        return paths_by_name

    def named(self, name: str) -> list[str]:
        """The paths of all files with this name, in whichever folder; see `files`."""
        return self._by_name.get(name, [])

    def text(self, path: str, most: int | None = None) -> str | None:
        """The text of a file with line ends LF; None when the base has no such file.

        At most `most` bytes are read, without it as many as of any file of ours.

        Raises:
            ModelBudgetError: it is there, but cannot be read here, is no text, or larger than what is read.
        """
        blob = self.files.get(path)
        if blob is None:
            return None
        if self._blobs is None:
            self._blobs = self._git.blobs()
        try:
            content = self._blobs.read(blob, most or MOST_BYTES)
        except UnreadableFile as problem:
            self.close()  # git has begun to give it
            raise ModelBudgetError(f"{path} of {self.where.name} {problem}") from None
        if content is None:
            self.close()  # some versions of git end at a blob that is not there
            raise ModelBudgetError(f"{path} of {self.where.name} is not in this clone (a partial one)")
        try:
            return decode_text(content)
        except UnreadableFile as problem:
            raise ModelBudgetError(f"{path} of {self.where.name}, line {problem.line}: {problem}") from None

    def close(self) -> None:
        """End the process that gives contents."""
        if self._blobs is not None:
            self._blobs.close()
            self._blobs = None
