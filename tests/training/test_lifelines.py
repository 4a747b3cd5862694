import contextlib
import queue
import socket
import threading

from llc_jax.training.lifelines import Lifelines, relay


@contextlib.contextmanager
def connected():
    """Yields the two ends of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as caller, server.accept()[0] as called:
            yield caller, called


def test_only_an_end_without_a_goodbye_is_a_loss():
    lost = queue.Queue()
    with connected() as (mine, theirs), connected() as (my_other, their_other):
        Lifelines({1: mine, 2: my_other}).watch(lambda *loss: lost.put(loss))
        Lifelines({0: theirs}).say_goodbye()
        theirs.close()
        their_other.close()
        assert lost.get(timeout=5) == (2, "127.0.0.1", "its connection was closed")
    assert lost.empty()


def test_a_client_does_not_notice_the_end_of_what_it_is_relayed_to():
    with socket.create_server(("127.0.0.1", 0)) as service:

        def answer():
            caller, _ = service.accept()
            with caller:
                caller.sendall(caller.recv(100).upper())

        thread = threading.Thread(target=answer)
        thread.start()
        host, _, port = relay(f"localhost:{service.getsockname()[1]}").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as client:
            client.sendall(b"abc")
            assert client.recv(100) == b"ABC"
            thread.join()
            client.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                raise AssertionError(client.recv(100))
