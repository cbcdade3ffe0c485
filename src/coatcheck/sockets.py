"""ZeroMQ endpoints on this host that leave no file behind and that no other user can reach.

A Unix socket needs a name in the file system to be bound, but not to be connected to: an ``O_PATH`` descriptor of the
socket file, reached as ``/proc/<pid>/fd/<fd>``, serves as well after the file is unlinked. The kernel lets only the
same user (or root) follow that link. So the file exists for the microseconds between bind and unlink, nothing remains
after kill -9, and a process started later can still connect. (Abstract sockets also leave no file, but any user may
connect to them.)
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import zmq


class PrivateEndpoint:
    """Binds ``socket`` privately; ``address`` is what peers of the same user connect to while this object is open."""

    def __init__(self, socket: zmq.Socket[Any]) -> None:
        directory = tempfile.mkdtemp(prefix="coatcheck-")  # mode 0700
        path = os.path.join(directory, "s")
        try:
            socket.bind(f"ipc://{path}")
            self._fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        finally:
            if os.path.exists(path):
                os.unlink(path)
            os.rmdir(directory)
        self.address = f"ipc:///proc/{os.getpid()}/fd/{self._fd}"

    def close(self) -> None:
        """No new peers from here on; connections that stand go on. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def push(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """A PUSH socket to an endpoint. It never blocks and loses nothing: for what is small, or bounded by its senders."""
    socket = context.socket(zmq.PUSH)
    socket.set_hwm(0)  # no limit
    socket.connect(address)
    return socket


def pull(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """A PULL socket, to be bound or connected, that loses nothing: for what is small, or bounded by its senders."""
    socket = context.socket(zmq.PULL)
    socket.set_hwm(0)
    return socket
