"""One process at a time at work in a folder.

On this machine's disks the operating system keeps the lock (``filelock``) and drops it with the process.  In a store, where what is
written is listed at once (S3, GCS, Azure), each process writes a claim of its own and goes on only if it sees no other; of two at the
same time neither may go on.

A claim is written anew every :data:`BEAT` seconds; one whose process on this host has ended, or that is older than :data:`LEASE` by the
store's own clock, is taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow.fs as pafs

from divray import console
from divray.errors import InputError
from divray.run_folder import RunFolder, make_folder

LOCK = ".lock"
"""What names of locks begin with."""
BEAT, LEASE = 20.0, 120.0

Holder = dict[str, Any]


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Be the only process at work in ``folder`` while the block runs.

    Raises:
        InputError: Another process is; the message has its host, its number and since when.
    """
    holder = {"host": socket.gethostname(), "process": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    if isinstance(folder.fs, pafs.LocalFileSystem):
        with _on_disk(folder, holder):
            yield
        return
    claim = _Claim(folder, holder)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(claim, ended), daemon=True)
    try:
        if (other := claim.take()) is not None:
            raise _refusal(folder, other)
        beating.start()
        yield
    finally:
        ended.set()
        if beating.is_alive():
            beating.join()
        claim.release()


def _refusal(folder: RunFolder, holder: Holder) -> InputError:
    who = "process {process} on {host} since {since}".format(**holder) if holder else "a process that has not named itself yet"
    return InputError(folder.root, "", f"another run is at work here: {who}", "Wait for its end, or end it.")


@contextlib.contextmanager
def _on_disk(folder: RunFolder, holder: Holder) -> Iterator[None]:
    from filelock import FileLock, Timeout

    make_folder(folder.fs, folder.root)
    named, other = f"{LOCK}.json", {}
    lock = FileLock(folder.path(LOCK), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        with contextlib.suppress(InputError):
            other = folder.read_json(named)
        raise _refusal(folder, other) from None
    try:
        folder.write_json(named, holder)
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.delete(named)
        lock.release()


def _beat(claim: _Claim, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(Exception):  # the store is out of reach; the next beat may find it
            if not claim.renew():
                problem = f"another run took this folder over, since this one said nothing for {LEASE:.0f} seconds"
                console.print_error(InputError(claim.folder.root, "", problem, "Wait for its end; the same command then goes on."))
                os._exit(InputError.exit_code)  # what ends in good order would write to the other's folder


def _has_ended(holder: Holder) -> bool:
    """Whether the holder is known to be gone: a process of this host that is no more."""
    if holder.get("host") == socket.gethostname():
        try:
            os.kill(int(holder["process"]), 0)
        except OSError as error:  # a PermissionError: another user's
            return isinstance(error, ProcessLookupError)
    return False


class _Claim:
    """A file of a process that wants the folder."""

    def __init__(self, folder: RunFolder, holder: Holder) -> None:
        self.folder, self.holder, self.name = folder, holder, f"{LOCK}.{uuid.uuid4().hex}"

    def take(self) -> Holder | None:
        """Take the folder; where that fails, who holds it."""
        self.folder.write_json(self.name, self.holder)
        infos = {i.base_name: i for i in self.folder.fs.get_file_info(pafs.FileSelector(self.folder.root))}
        own = infos.pop(self.name)
        for name, info in infos.items():
            if not name.startswith(f"{LOCK}."):
                continue
            other: Holder = {}
            try:
                with self.folder.fs.open_input_stream(info.path) as stream:
                    other = json.loads(bytes(stream.read()))
            except ValueError:
                pass  # its process is still writing it
            except OSError:
                if self.folder.exists(name):
                    raise
                continue  # released just now
            if not _has_ended(other) and (own.mtime - info.mtime).total_seconds() <= LEASE:
                return other
            self.folder.delete(name)
        return None

    def renew(self) -> bool:
        """Say that this process is still there; false where another took the folder over meanwhile."""
        if there := self.folder.exists(self.name):
            self.folder.write_json(self.name, self.holder)
        return there

    def release(self) -> None:
        self.folder.delete(self.name)
