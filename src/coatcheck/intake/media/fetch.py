"""Fetching an image's or a video's URL without letting a client reach what only this server can reach.

A host is resolved once; if any of its addresses is not public, the URL is refused; the connection goes to an address
that was checked, so a second answer of the name server cannot redirect it. Every redirect passes the same gate. Proxies
from the environment are not used. Runs in a worker and blocks it for at most ``remote_timeout_s`` per URL, beyond the
time that the system's resolver takes.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import SplitResult, urljoin, urlsplit

from coatcheck.errors import BadRequest
from coatcheck.intake.limits import MediaLimits
from coatcheck.intake.media.source import Source

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK = 1 << 16


def is_public(address: IPAddress) -> bool:
    """Whether ``address`` is one that anybody on the internet can reach; an embedded IPv4 address counts as well."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if embedded is None and address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(embedded)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def resolve(host: str, port: int) -> list[str]:
    """All addresses of ``host`` by the system's resolver. Raises OSError or UnicodeError."""
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


class _PinnedConnection(http.client.HTTPConnection):
    """Connects to the given address, whatever the host is called; TLS still verifies the host's name."""

    def __init__(self, url: SplitResult, port: int, address: str, timeout: float) -> None:
        assert url.hostname is not None
        super().__init__(url.hostname, port, timeout=timeout)
        self.default_port = 443 if url.scheme == "https" else 80  # decides whether Host carries the port
        self._address = address
        self._open: socket.socket | None = None  # http.client forgets its own once the response has begun
        self._tls = ssl.create_default_context() if url.scheme == "https" else None

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), timeout=self.timeout)
        self.sock = self._open = plain
        if self._tls is not None:
            wrapped = self._tls.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = self._open = wrapped  # before the handshake, so that cut() reaches it
            wrapped.do_handshake()

    def cut(self) -> None:
        """Ends whatever waits on the socket, from another thread."""
        if self._open is not None:
            with suppress(OSError):
                self._open.shutdown(socket.SHUT_RDWR)


class RemoteMedia:
    """Fetches images and videos by URL. The two arguments beyond the limits exist for tests; no option reaches them."""

    def __init__(
        self,
        limits: MediaLimits,
        *,
        resolver: Resolve = resolve,
        is_allowed: Callable[[IPAddress], bool] = is_public,
    ) -> None:
        self._limits = limits
        self._resolve = resolver
        self._is_allowed = is_allowed

    def fetch(self, source: Source) -> bytes:
        """The body behind the URL. Raises BadRequest: off, refused, unreachable, too slow, too large."""
        if not self._limits.allow_remote_images:
            raise BadRequest(
                f"This server does not fetch {source.kind} URLs; send the {source.kind} as a data: URL",
                param=source.param,
                code=f"remote_{source.kind}s_disabled",
            )
        url = source.url
        deadline = time.monotonic() + self._limits.remote_timeout_s
        for _ in range(self._limits.remote_max_redirects + 1):
            try:
                found = self._get(url, deadline, source)
            except (OSError, http.client.HTTPException, ValueError) as error:
                late = time.monotonic() >= deadline
                reason = "it took too long" if late else type(error).__name__
                raise _failed(f"cannot be fetched: {reason}", source) from None
            if isinstance(found, bytes):
                return found
            url = found
        raise _failed("redirects too often", source)

    def _get(self, url: str, deadline: float, source: Source) -> bytes | str:
        """The body, or the URL to go on with."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            message = f"The {source.kind} URL must be http(s)://host/..."
            raise BadRequest(message, param=source.param, code=f"invalid_{source.kind}_url")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = self._checked_address(parts.hostname, port, source)
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection = _PinnedConnection(parts, port, address, left)
        cut = threading.Timer(left, connection.cut)  # the socket's own timeout starts anew with every byte
        cut.daemon = True
        cut.start()
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"Accept": f"{source.kind}/*", "Accept-Encoding": "identity"})
            with connection.getresponse() as response:
                if response.status in _REDIRECTS and (location := response.getheader("Location")):
                    return urljoin(url, location)
                if response.status != 200:
                    raise _failed(f"answers with status {response.status}", source)
                body = self._read(response, source)
            if time.monotonic() >= deadline:  # a cut socket reads like the end of the body
                raise TimeoutError
            return body
        finally:
            cut.cancel()
            connection.close()

    def _checked_address(self, host: str, port: int, source: Source) -> str:
        addresses = self._resolve(host, port)
        if not addresses or not all(self._is_allowed(ipaddress.ip_address(address)) for address in addresses):
            raise BadRequest(
                f"The {source.kind} URL's host is not at a public address",
                param=source.param,
                code=f"remote_{source.kind}_refused",
            )
        return addresses[0]

    def _read(self, response: http.client.HTTPResponse, source: Source) -> bytes:
        limit = self._limits.remote_max_bytes
        body = bytearray()
        if (response.length or 0) <= limit:
            while len(body) <= limit and (chunk := response.read(_CHUNK)):
                body += chunk
            if len(body) <= limit:
                return bytes(body)
        message = f"The {source.kind} behind the URL is larger than {limit} bytes"
        raise BadRequest(message, param=source.param, code=f"{source.kind}_too_large")


def _failed(what: str, source: Source) -> BadRequest:
    return BadRequest(f"The {source.kind} URL {what}", param=source.param, code=f"remote_{source.kind}_failed")
