"""One process at a time at work in a folder.

On this machine's disks the operating system keeps the lock (``filelock``) and drops it with the process.  On S3 it is an object that
only a conditional write creates (``If-None-Match``) or takes over (``If-Match``).  ``pyarrow.fs`` has no conditional write for the other
stores: there each process writes a claim of its own and goes on only if it sees no other; of two at the same time neither may go on.

A lock in a store is written anew every :data:`BEAT` seconds; one whose process on this host has ended, or that is older than
:data:`LEASE` by the store's own clock, is taken over.
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
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow.fs as pafs

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
    lock = _Object(folder, holder) if folder.fs.type_name == "s3" else _Claims(folder, holder)
    if (other := lock.take()) is not None:
        raise _refusal(folder, other)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(lock, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        lock.release()


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


def _beat(lock: _Object | _Claims, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(Exception):  # the store is out of reach; the next beat may find it
            lock.renew()


def _has_ended(holder: Holder) -> bool:
    """Whether the holder is known to be gone: a process of this host that is no more."""
    if holder.get("host") == socket.gethostname():
        try:
            os.kill(int(holder["process"]), 0)
        except OSError as error:  # a PermissionError: another user's
            return isinstance(error, ProcessLookupError)
    return False


class _Object:
    """An object on S3 that conditional writes create and take over."""

    def __init__(self, folder: RunFolder, holder: Holder) -> None:
        import boto3

        uri = urlsplit(folder.uri)
        query = {name: values[0] for name, values in parse_qs(uri.query).items()}
        endpoint = query.get("endpoint_override")
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=f"{query.get('scheme', 'https')}://{endpoint}" if endpoint else None,
            region_name=query.get("region"),
            aws_access_key_id=unquote(uri.username) if uri.username else None,
            aws_secret_access_key=unquote(uri.password) if uri.password else None,
        )
        bucket, _, key = folder.path(LOCK).partition("/")
        self.place = {"Bucket": bucket, "Key": key}
        self.body = json.dumps(holder).encode()
        self.tag = ""

    def take(self) -> Holder | None:
        """Take the lock; where that fails, who holds it."""
        if self._put(IfNoneMatch="*"):
            return None
        try:
            found = self.client.get_object(**self.place)
        except self.client.exceptions.NoSuchKey:  # released just now
            return None if self._put(IfNoneMatch="*") else {}
        holder: Holder = json.loads(found["Body"].read())
        now = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
        stale = _has_ended(holder) or (now - found["LastModified"]).total_seconds() > LEASE
        return None if stale and self._put(IfMatch=found["ETag"]) else holder

    def _put(self, **condition: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            self.tag = self.client.put_object(**self.place, Body=self.body, **condition)["ETag"]
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 409, 412):
                return False
            raise
        return True

    def renew(self) -> None:
        self._put(IfMatch=self.tag)

    def release(self) -> None:
        with contextlib.suppress(self.client.exceptions.ClientError):  # taken over, and released since
            if self.client.head_object(**self.place)["ETag"] == self.tag:
                self.client.delete_object(**self.place)


class _Claims:
    """A file of each process that wants the folder, in a store where what is written is listed at once."""

    def __init__(self, folder: RunFolder, holder: Holder) -> None:
        self.folder, self.holder, self.name = folder, holder, f"{LOCK}.{uuid.uuid4().hex}"

    def take(self) -> Holder | None:
        self.renew()
        infos = {i.base_name: i for i in self.folder.fs.get_file_info(pafs.FileSelector(self.folder.root))}
        own = infos.pop(self.name)
        for name, info in infos.items():
            if name.startswith(f"{LOCK}."):
                with contextlib.suppress(FileNotFoundError):  # released just now
                    with self.folder.fs.open_input_stream(info.path) as stream:
                        text = bytes(stream.read())
                    other: Holder = {}
                    with contextlib.suppress(ValueError):  # its process is still writing it
                        other = json.loads(text)
                    if not _has_ended(other) and (own.mtime - info.mtime).total_seconds() <= LEASE:
                        self.release()
                        return other
                    self.folder.delete(name)
        return None

    def renew(self) -> None:
        self.folder.write_json(self.name, self.holder)

    def release(self) -> None:
        self.folder.delete(self.name)
