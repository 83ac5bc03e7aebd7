"""The one way in which a reader refuses a file."""

from __future__ import annotations


class DamagedFile(Exception):
    """Why a file is not read, as the end of a sentence that begins with its name, with the cure after a colon.

    `is damaged: its header says 8,192 bytes, and the file has 100: fetch it again, or export the model again`
    """
