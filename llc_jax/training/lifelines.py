"""Connections between the processes of a run by which they notice that one of them is lost.

The operating system closes them however a process ends, SIGKILL included. JAX would notice
later, and end the others in compiled code, with its log in place of a sentence.
"""

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Callable, Mapping

_GOODBYE = b"."
# A machine that has vanished closes nothing: after so many seconds of silence it is asked, so
# often and so many times, whether it is there.
_KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}


class Lifelines:
    """Open connections, on which nothing is said but goodbye.

    Args:
      connections: by the id of the process at the other end.
    """

    def __init__(self, connections: Mapping[int, socket.socket]):
        self._connections = connections
        self._hosts = {process: _host(connection) for process, connection in connections.items()}
        for connection in connections.values():
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                if hasattr(socket, name):  # The system's own patience is hours.
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def watch(self, on_loss: Callable[[int, str, str], None]) -> None:
        """Watches them in a thread of its own.

        Args:
          on_loss: called with the id of each process that ends without a goodbye, its address,
            and how that was noticed.
        """
        arguments = (on_loss,)
        threading.Thread(target=self._watch, args=arguments, name="lifelines", daemon=True).start()

    def say_goodbye(self) -> None:
        """Lets the others know that this process ends in good order."""
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.sendall(_GOODBYE)

    def _watch(self, on_loss: Callable[[int, str, str], None]) -> None:
        with selectors.DefaultSelector() as selector:
            for process, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, process)
            while selector.get_map():
                for key, _ in selector.select():
                    selector.unregister(key.fileobj)
                    if cause := _cause_of_end(key.fileobj):
                        on_loss(key.data, self._hosts[key.data], cause)


def _cause_of_end(connection: socket.socket) -> str:
    """Says why a connection has ended, "" after a goodbye."""
    try:
        return "" if connection.recv(1) == _GOODBYE else "its connection was closed"
    except OSError as error:
        return os.strerror(error.errno)


def _host(connection: socket.socket) -> str:
    """The address of the other end."""
    return connection.getpeername()[0].removeprefix("::ffff:")


def relay(address: str) -> str:
    """Lets a client of process 0 outlive it, which would otherwise end its own process.

    What connects to the address that is returned, from this machine, is connected to process 0.
    It does not notice when process 0 is lost: it waits. Only lifelines tell.

    Args:
      address: host:port of process 0.

    Returns:
      The address, host:port.
    """
    host, _, port = address.rpartition(":")
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            client, _ = server.accept()
            try:
                service = socket.create_connection((host.strip("[]"), int(port)), timeout=5.0)
            except OSError:  # It has not started yet, and the client calls again.
                client.close()
                continue
            service.settimeout(None)
            for ends in ((client, service), (service, client)):
                threading.Thread(target=_pass_on, args=ends, name="relay", daemon=True).start()

    threading.Thread(target=serve, name="relay", daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}"


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Passes on what comes until nothing does; both connections stay open."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
