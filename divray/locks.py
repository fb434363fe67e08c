"""A lock that lets one process at a time work in a folder.

On this machine's disks the operating system holds the lock (``filelock``) and releases it when the process ends.  A store (S3, GCS,
Azure) lists a file as soon as it is written.  There each process writes its own claim and goes on only if it sees no other.  If two
start at the same time, it can be that neither goes on.

A process rewrites its claim every :data:`BEAT` seconds.  Another process deletes the claim if its process ended on the same host, or once
the claim is more than :data:`LEASE` seconds old by the store's clock; until then it looks every :data:`LOOK` seconds.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
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
"""Start of the names of all locks, and the file that names the holder of a lock on a disk."""
BEAT, LEASE, LOOK = 20.0, 120.0, 3.0


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Be the only process at work in ``folder`` while the block runs.

    Raises:
        InputError: Another process is at work there; the message has its host, its process id and when it began.
    """
    make_folder(folder.fs, folder.root)  # in a store, too: whoever may not write there is told now
    own = {"host": socket.gethostname(), "process": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    with _on_disk(folder, own) if folder.local else _in_store(folder, own):
        yield


@contextlib.contextmanager
def _on_disk(folder: RunFolder, own: dict[str, Any]) -> Iterator[None]:
    from filelock import FileLock, Timeout

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


def _claims(folder: RunFolder) -> dict[str, datetime]:
    """When each claim was written last, by the store's clock."""
    found = folder.fs.get_file_info(pafs.FileSelector(folder.root))
    return {info.base_name: info.mtime for info in found if info.base_name.startswith(f"{LOCK}.")}


def _outlast(folder: RunFolder, claim: str) -> None:
    """Delete the claims of processes that are gone; raises :class:`InputError` if another process still runs.  A later claim doesn't
    matter: its process sees this one."""
    first = now = _claims(folder)
    for other in first.keys() - {claim}:
        holder = _holder(folder, other)
        while other in now and (left := LEASE - (now[claim] - now[other]).total_seconds()) >= 0 and not _has_ended(holder):
            if now[other] != first[other] or holder.get("host") in (None, socket.gethostname()):
                if folder.exists(other):  # not released meanwhile
                    raise _refusal(folder, holder)
                break
            if now is first:
                console.log(f"waits up to {left + BEAT:.0f} s to see whether the run of {holder['host']} still lives")
            time.sleep(LOOK)
            now = _claims(folder)
        folder.delete(other)


def _beat(folder: RunFolder, claim: str, own: dict[str, Any], ended: threading.Event) -> None:
    """Rewrite this process's claim every :data:`BEAT` seconds; end the process if another one took the folder over."""
    while not ended.wait(BEAT):
        with contextlib.suppress(Exception):  # if the store can't be reached, the next beat may reach it
            if not folder.exists(claim):
                problem = f"another run took this folder over, because this one did not renew its lock for {LEASE:.0f} seconds"
                console.print_error(InputError(folder.root, "", problem, "Wait until it ends; the same command then goes on."))
                os._exit(InputError.exit_code)  # a normal exit would write to the folder, which is the other's now
            folder.write_json(claim, own)


def _holder(folder: RunFolder, name: str) -> dict[str, Any]:
    """Who wrote a lock; empty while it is being written, or once it is gone."""
    try:
        return dict(folder.read_json(name))
    except (InputError, OSError):  # OSError also if the store can't be reached; the next call reports that
        return {}


def _refusal(folder: RunFolder, holder: dict[str, Any]) -> InputError:
    who = "process {process} on {host} since {since}".format(**holder) if holder else "a process that has not named itself yet"
    return InputError(folder.root, "", f"another run is at work here: {who}", "Wait until it ends, or end it.")


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the holder is known to be gone: a process of this host that no longer exists."""
    if holder.get("host") == socket.gethostname():
        try:
            os.kill(holder["process"], 0)
        except OSError as error:  # PermissionError: it runs, as another user
            return isinstance(error, ProcessLookupError)
    return False
