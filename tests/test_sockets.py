"""Sockets that leave no file and that only this user reaches."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from coatcheck.sockets import PrivateEndpoint

NOBODY = 65534


@pytest.fixture
def bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[zmq.Socket[bytes], PrivateEndpoint]]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other servers may run on this machine
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PULL)
    endpoint = PrivateEndpoint(socket)
    yield socket, endpoint
    endpoint.close()
    context.destroy(linger=0)


def connect(address: str, **more: int) -> subprocess.CompletedProcess[str]:
    path = address.removeprefix("ipc://")
    code = f"import socket; socket.socket(socket.AF_UNIX).connect({path!r})"
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=15, check=False, cwd="/", **more
    )


def test_another_process_connects_and_no_file_is_left(bound: tuple[zmq.Socket[bytes], PrivateEndpoint]) -> None:
    socket, endpoint = bound
    assert not list(Path(tempfile.gettempdir()).iterdir())
    code = (
        "import sys, zmq; c = zmq.Context(); s = c.socket(zmq.PUSH); s.connect(sys.argv[1]);"
        "s.send(b'hello'); s.close(); c.term()"
    )
    subprocess.run([sys.executable, "-c", code, endpoint.address], timeout=15, check=True)
    assert socket.poll(5000)
    assert socket.recv() == b"hello"


def test_nobody_connects_once_closed(bound: tuple[zmq.Socket[bytes], PrivateEndpoint]) -> None:
    _, endpoint = bound
    assert connect(endpoint.address).returncode == 0
    endpoint.close()
    endpoint.close()
    assert connect(endpoint.address).returncode != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a process as another user")
def test_another_user_is_refused(bound: tuple[zmq.Socket[bytes], PrivateEndpoint]) -> None:
    _, endpoint = bound
    # The system's interpreter: another user may not be able to reach this one's.
    path = endpoint.address.removeprefix("ipc://")
    done = subprocess.run(
        ["/bin/sh", "-c", f"ls -lL {path}"],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
        user=NOBODY,
        cwd="/",
    )
    assert done.returncode != 0
    assert "ermission denied" in done.stderr
    assert subprocess.run(["/bin/sh", "-c", f"ls -lL {path}"], timeout=15, check=False, stdout=-3).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a process as another user")
def test_another_user_cannot_connect(bound: tuple[zmq.Socket[bytes], PrivateEndpoint]) -> None:
    # Becomes the other user once the interpreter runs, which that user may not be able to start.
    path = bound[1].address.removeprefix("ipc://")
    code = f"import os, socket; s = socket.socket(socket.AF_UNIX); os.setuid({{}}); s.connect({path!r})"
    for uid, refused in ((os.geteuid(), False), (NOBODY, True)):
        command = [sys.executable, "-I", "-c", code.format(uid)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False, cwd="/")
        assert ("PermissionError" in done.stderr) is refused
        assert (done.returncode != 0) is refused
