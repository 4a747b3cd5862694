"""Object stores that run here, as processes, and a proxy before them that makes faults."""

import contextlib
import http.client
import http.server
import importlib.util
import socket
import subprocess
import sys
import threading
import time

import pytest

KINDS = ("memory", "s3")
BUCKET = "bucket"
_PACKAGES = {"s3": ("moto", "s3fs")}
# What they are told to do once the connection is there.
_HANG_SECONDS = 5


def missing(kind):
    """Returns which packages a store needs that are not installed."""
    return [name for name in _PACKAGES.get(kind, ()) if importlib.util.find_spec(name) is None]


def environment(port):
    """Returns the variables that lead to S3 at a port."""
    return {
        "AWS_ENDPOINT_URL": f"http://localhost:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextlib.contextmanager
def serving():
    """Runs S3 with one bucket; yields its port."""
    port = _free_port()
    arguments = ["moto.server", "-H", "localhost", "-p", str(port)]
    with subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            _wait_for(port, server)
            _ask(port, "PUT", f"/{BUCKET}")
            yield port
        finally:
            server.kill()


class Faults(http.server.ThreadingHTTPServer):
    """A proxy that passes requests on, but makes a fault of some.

    Attributes:
      choose: (method, path) -> "503", "hang", "cut", "drop", or None for no fault.
    """

    daemon_threads = True

    def __init__(self, port):
        super().__init__(("localhost", 0), _Handler)
        self.store_port, self.choose, self.requests = port, lambda method, path: None, []

    @property
    def port(self):
        """The port of the proxy."""
        return self.server_address[1]

    def handle_error(self, request, client_address):
        """Says nothing of connections that clients have closed."""

    def fail(self, *faults, method="GET", name=""):
        """Makes these faults of the next requests of a method for what has a name in its path."""
        left = list(faults)

        def choose(verb, path):
            return left.pop(0) if verb == method and name in path and left else None

        self.choose = choose


@contextlib.contextmanager
def with_faults(port):
    """Runs the proxy before the store at a port; yields it."""
    with Faults(port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Says nothing."""

    def _pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path))
        fault = self.server.choose(self.command, self.path)
        if fault == "hang":
            time.sleep(_HANG_SECONDS)
        if fault in ("hang", "drop"):
            self.close_connection = True
            return
        status, headers, content = (503, [], b"SlowDown")
        if fault != "503":
            status, headers, content = _ask(
                self.server.store_port, self.command, self.path, body, dict(self.headers)
            )
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = dict(headers).get("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        self.close_connection = self.close_connection or fault == "cut"

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _pass_on


def _ask(port, method, path, body=b"", headers=()):
    connection = http.client.HTTPConnection("localhost", port, timeout=60)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        return response.status, response.getheaders(), response.read()
    finally:
        connection.close()


def _forget_connections():
    """Makes fsspec forget the file systems that it keeps, which ask the store of another test."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _wait_for(port, server):
    end = time.monotonic() + 60
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
            return
        time.sleep(0.1)
    pytest.fail("The store did not start.")


@contextlib.contextmanager
def opened(kind):
    """Leads this process to a store that runs meanwhile; yields its URL, and the proxy if any."""
    if kind == "memory":
        import fsspec

        system = fsspec.filesystem("memory")
        system.store.clear()
        system.pseudo_dirs[:] = [""]
        yield f"memory://{BUCKET}", None
        return
    if missing(kind):
        pytest.skip(f"This needs the packages {', '.join(missing(kind))}.")
    with serving() as port, with_faults(port) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(proxy.port).items():
            patch.setenv(name, value)
        _forget_connections()
        yield f"{kind}://{BUCKET}", proxy
