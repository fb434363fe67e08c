"""One process at a time at work in a folder.

On this machine's disks the operating system keeps the lock (``filelock``) and drops it with the process.  In a store, where what is
written is listed at once (S3, GCS, Azure), each process writes a claim of its own and goes on only if it sees no other; of two at the
same time neither may go on.

A claim is written anew every :data:`BEAT` seconds; one whose process on this host has ended, or that is older than :data:`LEASE` by the
store's own clock, is taken over.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow.fs as pafs

from divray import console
from divray.dedup.storage import make_folder
from divray.errors import InputError
from divray.run_folder import RunFolder

LOCK, NAMED = ".lock", ".lock.json"
"""What names of locks begin with, and who holds the one on a disk."""
BEAT, LEASE = 20.0, 120.0


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Be the only process at work in ``folder`` while the block runs.

    Raises:
        InputError: Another process is; the message has its host, its number and since when.
    """
    own = {"host": socket.gethostname(), "process": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    with _on_disk(folder, own) if isinstance(folder.fs, pafs.LocalFileSystem) else _in_store(folder, own):
        yield


@contextlib.contextmanager
def _on_disk(folder: RunFolder, own: dict[str, Any]) -> Iterator[None]:
    from filelock import FileLock, Timeout

    make_folder(folder.fs, folder.root)
    lock = FileLock(folder.path(LOCK), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise _refusal(folder, _holder(folder, NAMED)) from None
    try:
        folder.write_json(NAMED, own)
        yield
    finally:
        folder.delete(NAMED)
        lock.release()


@contextlib.contextmanager
def _in_store(folder: RunFolder, own: dict[str, Any]) -> Iterator[None]:
    claim, ended = f"{LOCK}.{uuid.uuid4().hex}", threading.Event()
    beating = threading.Thread(target=_beat, args=(folder, claim, own, ended), daemon=True)
    folder.write_json(claim, own)
    beating.start()
    try:
        _outlast(folder, claim)
        yield
    finally:
        ended.set()
        beating.join()
        folder.delete(claim)


def _outlast(folder: RunFolder, claim: str) -> None:
    """Delete the claims of processes that are gone; :class:`InputError` where another is still there."""
    written = {i.base_name: i.mtime for i in folder.fs.get_file_info(pafs.FileSelector(folder.root)) if i.base_name.startswith(f"{LOCK}.")}
    now = written.pop(claim)
    for other, at in written.items():
        holder = _holder(folder, other)
        if (now - at).total_seconds() <= LEASE and not _has_ended(holder) and folder.exists(other):  # not released just now
            raise _refusal(folder, holder)
        folder.delete(other)


def _beat(folder: RunFolder, claim: str, own: dict[str, Any], ended: threading.Event) -> None:
    """Say again and again that this process is still there."""
    while not ended.wait(BEAT):
        with contextlib.suppress(Exception):  # the store is out of reach; the next beat may find it
            if not folder.exists(claim):
                problem = f"another run took this folder over, since this one said nothing for {LEASE:.0f} seconds"
                console.print_error(InputError(folder.root, "", problem, "Wait for its end; the same command then goes on."))
                os._exit(InputError.exit_code)  # what ends in good order would write to the other's folder
            folder.write_json(claim, own)


def _holder(folder: RunFolder, name: str) -> dict[str, Any]:
    """Who wrote a lock; empty while it is being written, or once it is gone."""
    try:
        return dict(folder.read_json(name))
    except (InputError, OSError):  # an OSError also of a store that is out of reach, which says so at the next call
        return {}


def _refusal(folder: RunFolder, holder: dict[str, Any]) -> InputError:
    who = "process {process} on {host} since {since}".format(**holder) if holder else "a process that has not named itself yet"
    return InputError(folder.root, "", f"another run is at work here: {who}", "Wait for its end, or end it.")


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the holder is known to be gone: a process of this host that is no more."""
    if holder.get("host") == socket.gethostname():
        try:
            os.kill(holder["process"], 0)
        except OSError as error:  # a PermissionError: another user's
            return isinstance(error, ProcessLookupError)
    return False
