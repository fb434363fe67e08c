"""Paths and URIs of any file system, and files that appear only when they are complete."""

import contextlib
import os
import posixpath
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow.fs as pafs

from divray.errors import InputError

PARQUET = (".parquet", ".parq", ".pq")
"""Endings of Parquet files, in lower case."""


def is_uri(path: str) -> bool:
    """Whether ``path`` is a URI; anything else is a path on this machine, whatever characters it has."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def public_name(reference: str) -> str:
    """``reference`` without the credentials and options that a URI may carry."""
    return re.sub(r"://[^/@]*@", "://", reference).partition("?")[0] if is_uri(reference) else reference


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """``(filesystem, path)`` of a local path or of any URI that ``pyarrow.fs`` knows, without a slash at the end.

    Raises:
        InputError: it is empty, or no such file system can be reached.
    """
    try:
        if not uri:
            raise ValueError("an empty path")
        if not is_uri(uri):
            return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
        if not uri.partition("://")[2].strip("/"):
            raise ValueError("a URI without a bucket or a host")
        fs, path = pafs.FileSystem.from_uri(_encoded(uri))
        if isinstance(fs, pafs.PyFileSystem):  # hf://: its library checks the path only at the first use
            fs.get_file_info(path)
        return fs, path.rstrip("/")
    except Exception as error:  # no such home folder, or any error of the library for the scheme
        place, problem = (re.sub(r"(?<=://)[^/@]*@", "", text) for text in (uri, first_line(error)))  # without credentials
        raise InputError(place or "path", "", problem, "Give a path, or a URI like s3://bucket/folder.") from None


def _encoded(uri: str) -> str:
    """Percent-encode what a URI may not hold (spaces, ``#``, characters outside ASCII); what is encoded already stays."""
    base, question, query = uri.partition("?")
    if base.startswith("s3:"):  # a small file is one request, not three
        question, query = "?", f"{query}&allow_delayed_open=true"
    return re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", quote(base, safe="%!$&'()*+,/:;=@[]~")) + question + query


def first_line(error: Exception) -> str:
    """The first line of an error's message, shortened; of an operating-system error, only the reason."""
    reasons = re.findall(r"\[[Ee]rrno \d+\] ([^.:]+)", str(error))
    return reasons[-1] if reasons else (str(error).splitlines() or [type(error).__name__])[0][:120]


def make_folder(fs: pafs.FileSystem, folder: str) -> None:
    try:
        fs.create_dir(folder, recursive=True)
    except OSError as error:
        raise InputError(folder, "", f"the folder can't be made ({first_line(error)})", "Give a place that can be written to.") from None


@contextlib.contextmanager
def placed(fs: pafs.FileSystem, target: str) -> Iterator[str]:
    """Give a temporary path to write to.  After the block, move the file to ``target``, or delete it if the block fails.

    On the local file system, a ``target`` that is a link stays one, and the new file takes the old one's mode.

    Raises:
        InputError: No file can be written there; the block does not start.
    """
    local = isinstance(fs, pafs.LocalFileSystem)
    target = os.path.realpath(target) if local else target
    path = posixpath.join(posixpath.dirname(target), f".{uuid.uuid4().hex}.tmp")  # most readers skip such a name
    try:
        try:
            kind = fs.get_file_info(target).type
            if kind not in (pafs.FileType.File, pafs.FileType.NotFound):
                raise InputError(target, "", "a folder, a device or a pipe lies there", "Give the name of a file.")
            fs.open_output_stream(path).close()
            if local and kind == pafs.FileType.File:
                shutil.copymode(target, path)
        except OSError as error:
            raise InputError(target, "", f"can't be written ({first_line(error)})", "Give a place that can be written to.") from None
        yield path
        if fs.type_name == "hdfs" and kind == pafs.FileType.File:  # the only one whose move does not replace a file
            fs.delete_file(target)
        fs.move(path, target)
    except BaseException:
        with contextlib.suppress(OSError):  # removes what a full disk left; it may be missing
            fs.delete_file(path)
        raise
