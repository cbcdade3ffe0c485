"""Remote images: what is refused, and what a hostile server can do."""

from __future__ import annotations

import ipaddress
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from coatcheck.errors import BadRequest
from coatcheck.intake.limits import MediaLimits
from coatcheck.intake.media.fetch import RemoteMedia, is_public
from coatcheck.intake.media.source import Source
from tests.support.front_end import chat_body, chat_handler, image_part, process

Route = Callable[[BaseHTTPRequestHandler], None]


def limits(*, allow: bool = True) -> MediaLimits:
    return MediaLimits(allow_remote_images=allow, remote_timeout_s=1, remote_max_bytes=100_000)


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "1.1.1.1", "2606:4700::1111", "64:ff9b::101:101", "::ffff:1.1.1.1"]
)
def test_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::1",
        "2001:db8::1",
        "2001:0:4136:e378:8000:63bf:f5ff:fffe",  # Teredo, its client being 10.0.0.1
    ],
)
def test_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0"],
)
def test_spellings_of_this_host_are_refused(host: str) -> None:
    with pytest.raises(BadRequest) as caught:
        RemoteMedia(limits()).fetch(Source("image", "p", f"http://{host}/a.png"))
    assert caught.value.code in ("remote_image_refused", "remote_image_failed")


def test_one_private_address_among_public_ones_is_enough() -> None:
    images = RemoteMedia(limits(), resolver=lambda host, port: ["1.1.1.1", "10.0.0.1"])
    with pytest.raises(BadRequest, match="public") as caught:
        images.fetch(Source("image", "p", "http://example.org/"))
    assert caught.value.code == "remote_image_refused"


def test_the_real_gate_stands_in_the_path_of_a_request(model_dir: Path) -> None:
    body = json.dumps(chat_body(image_part("http://127.0.0.1:9/a.png"))).encode()
    with pytest.raises(BadRequest) as caught:
        process(chat_handler(model_dir, allow_remote_images=True), body)
    assert caught.value.code == "remote_image_refused"


def test_off_by_default() -> None:
    with pytest.raises(BadRequest) as caught:
        RemoteMedia(limits(allow=False)).fetch(
            Source("image", "messages[0].content[0].image_url.url", "http://example.org/")
        )
    assert caught.value.code == "remote_images_disabled"
    assert caught.value.param == "messages[0].content[0].image_url.url"


class Site:
    """A local web server that goes by any name, since the resolver given to RemoteMedia says so."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.hosts: list[str] = []
        self.asked: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.hosts.append(self.headers["Host"])
                site.routes[self.path](self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def images(self) -> RemoteMedia:
        def resolver(host: str, port: int) -> list[str]:
            self.asked.append(host)
            # A rebinding name server: public at first, private when asked again.
            return ["127.0.0.1"] if self.asked.count(host) == 1 and host != "inside.example" else ["10.0.0.1"]

        return RemoteMedia(
            limits(), resolver=resolver, is_allowed=lambda address: address == ipaddress.ip_address("127.0.0.1")
        )

    def url(self, path: str, host: str = "site.example") -> str:
        return f"http://{host}:{self.port}{path}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def respond(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def code_of(site: Site, path: str) -> str:
    with pytest.raises(BadRequest) as caught:
        site.images().fetch(Source("image", "p", site.url(path)))
    assert caught.value.param == "p"
    return caught.value.code


def test_fetches_from_the_address_checked_under_the_right_name(site: Site) -> None:
    site.routes = {"/a?b=c": lambda handler: respond(handler, 200, b"pixels")}
    assert site.images().fetch(Source("image", "p", site.url("/a?b=c"))) == b"pixels"
    assert site.asked == ["site.example"]  # resolved once only: nothing to rebind
    assert site.hosts == [f"site.example:{site.port}"]


def test_redirects_pass_the_same_gate(site: Site) -> None:
    site.routes = {
        "/good": lambda handler: respond(handler, 302, Location=site.url("/end", "second.example")),
        "/end": lambda handler: respond(handler, 200, b"pixels"),
        "/inside": lambda handler: respond(handler, 302, Location=site.url("/end", "inside.example")),
        "/file": lambda handler: respond(handler, 302, Location="file:///etc/passwd"),
    }
    assert site.images().fetch(Source("image", "p", site.url("/good"))) == b"pixels"
    site.asked.clear()
    assert code_of(site, "/inside") == "remote_image_refused"
    site.asked.clear()
    assert code_of(site, "/file") == "invalid_image_url"


def test_endless_redirects(site: Site) -> None:
    hops = iter(range(100))
    site.routes = {"/": lambda handler: respond(handler, 302, Location=site.url("/", f"hop{next(hops)}.example"))}
    assert code_of(site, "/") == "remote_image_failed"
    assert len(site.hosts) == 4


def test_status_other_than_200(site: Site) -> None:
    site.routes = {"/": lambda handler: respond(handler, 404)}
    assert code_of(site, "/") == "remote_image_failed"


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"x" * 65536)
    except OSError:
        return


def drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(200):
            handler.wfile.write(b"x")
            time.sleep(0.05)
    except OSError:
        return


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    try:
        for byte in b"HTTP/1.1 200 OK\r\n" + b"A" * 200:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.05)
    except OSError:
        return


def test_too_large(site: Site) -> None:
    site.routes = {"/said": lambda handler: respond(handler, 200, b"x" * 100_001), "/unsaid": endless}
    assert code_of(site, "/said") == "image_too_large"
    site.asked.clear()
    assert code_of(site, "/unsaid") == "image_too_large"


@pytest.mark.parametrize("slow", [drip, drip_headers])
def test_a_server_that_drips_is_cut_off(site: Site, slow: Route) -> None:
    site.routes = {"/": slow}
    started = time.monotonic()
    assert code_of(site, "/") == "remote_image_failed"
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "url",
    ["http://", "http://user:secret@site.example/", "http://[::1", "http://a:99999/", "gopher://a/", "http://a b/"],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(BadRequest):
        RemoteMedia(limits(), resolver=lambda host, port: ["1.1.1.1"], is_allowed=lambda _: False).fetch(
            Source("image", "p", url)
        )
