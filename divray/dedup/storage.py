"""Where files lie: paths and URIs, files that appear only once they are whole, and folders with one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import posixpath
import re
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs

from divray.errors import InputError

LOCK = ".lock"

_REPLACING = ("local", "s3", "gcs")
"""File systems that move at once over an older file."""


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """``(filesystem, path)`` of a local path or of any URI that ``pyarrow.fs`` knows, without a slash at the end.

    Raises:
        InputError: it is empty, or no such file system can be reached.
    """
    try:
        if not uri:
            raise ValueError("an empty path")
        if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", uri):
            return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
        scheme, _, rest = uri.partition("://")
        if scheme.lower() == "file":
            host, slash, path = rest.partition("/")
            if not slash or host not in ("", "localhost"):
                raise ValueError("a file's URI has an absolute path after file:// and an optional localhost")
            return pafs.LocalFileSystem(), f"/{unquote(path).rstrip('/')}"
        fs, path = pafs.FileSystem.from_uri(_encoded(uri))
        return fs, path.rstrip("/")
    except (pa.ArrowException, OSError, RuntimeError, ValueError) as error:  # RuntimeError: no such home folder
        place, problem = (re.sub(r"(?<=://)[^/@]*@", "", text) for text in (uri, first_line(error)))  # without keys
        raise InputError(place or "path", "", problem, "Give a path, or a URI like s3://bucket/folder.") from None


def _encoded(uri: str) -> str:
    """A URI with what it may not hold (blanks, ``#``, letters outside ASCII) percent-encoded; what is encoded stays."""
    base, question, query = uri.partition("?")
    return re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", quote(base, safe="%!$&'()*+,/:;=@[]~")) + question + query


def first_line(error: Exception) -> str:
    """What an error says, short enough for one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def beside(path: str) -> str:
    """A path in the same folder for what will be moved to ``path``; most readers pass over its name, which begins with a full stop."""
    folder, name = posixpath.split(path)
    return posixpath.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")


@contextlib.contextmanager
def placed(fs: pafs.FileSystem, target: str) -> Iterator[str]:
    """A path to write a file to, which is moved to ``target`` once the block is done, and gone where it fails."""
    path = beside(target)
    try:
        yield path
        if fs.type_name not in _REPLACING and fs.get_file_info(target).type != pafs.FileType.NotFound:
            fs.delete_file(target)
        fs.move(path, target)
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk's leavings; nothing there
            fs.delete_file(path)
        raise


def target_of(name: str) -> str:
    """The name of the file for which :func:`beside` made ``name``; ``""`` where it made it for none."""
    made = re.fullmatch(r"\.(.+)\.[0-9a-f]{32}\.tmp", name)
    return made[1] if made else ""


def signature() -> str:
    """This process, for those that meet its files."""
    return f"process {os.getpid()} on {platform.node()}, {datetime.now().astimezone().isoformat(' ', 'seconds')}"


@contextlib.contextmanager
def held(uri: str) -> Iterator[None]:
    """Make a folder, and hold it for this process alone.

    The operating system lets go of the lock when the process ends, however it ends.  Object stores, and file systems
    without locks, have none.

    Raises:
        InputError: another process holds the folder (says which, where and since when), or it can't be made.
    """
    fs, folder = open_uri(uri)
    try:
        fs.create_dir(folder, recursive=True)
    except OSError as error:
        problem = f"not a folder that can be written to ({first_line(error)})"
        raise InputError(uri, "", problem, "Give another folder.") from None
    if not isinstance(fs, pafs.LocalFileSystem):
        yield
        return
    with open(posixpath.join(folder, LOCK), "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            raise InputError(uri, "", f"in use by {holder}", "Wait until that one is done, or give another folder.") from None
        except OSError:  # a file system without locks
            yield
            return
        file.truncate(0)
        file.write(signature())
        file.flush()
        yield
        file.truncate(0)
