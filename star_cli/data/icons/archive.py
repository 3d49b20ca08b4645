"""Zip files that stay open for reading, in each process anew."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

from star_cli.errors import DataError


class OpenArchive:
    """A zip file, opened when first read.

    A process that was forked off opens it again: both would move the position of one file.

    Args:
        path: the file.
        hint: what to do when it is damaged.
    """

    def __init__(self, path: Path, hint: str):
        self.path, self._hint = path, hint
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def names(self) -> list[str]:
        """Members in their order.

        Raises:
            DataError: the file cannot be read.
        """
        return self._file().namelist()

    def read(self, member: str) -> bytes:
        """What a member holds.

        Raises:
            KeyError: there is none of this name.
            DataError: the file cannot be read.
        """
        file = self._file()
        try:
            return file.read(member)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise self._damaged(error) from error

    def _file(self) -> zipfile.ZipFile:
        process = os.getpid()
        if self._opened is None or self._opened[0] != process:
            try:
                self._opened = process, zipfile.ZipFile(self.path)
            except (OSError, ValueError, zipfile.BadZipFile) as error:
                raise self._damaged(error) from error
        return self._opened[1]

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{self.path} cannot be read: {getattr(error, 'strerror', None) or error}", self._hint)
