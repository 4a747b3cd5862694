import concurrent.futures
import contextlib
import socket
import threading
import time

import pytest

from llc_jax.errors import InputError
from llc_jax.training.roll_call import NotConnected, call_roll
from tests.processes import free_address


def call(address, *processes, timeout=2.0):
    """Calls the roll in a thread for each (number of processes, id); returns what they hear."""

    def heard(process):
        try:
            return call_roll(address, *process, timeout)
        except (InputError, NotConnected) as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(heard, processes))


def test_all_come_and_are_connected_and_the_port_is_free_again():
    address = free_address()
    for _ in range(2):
        heard = call(address, (3, 2), (3, 0), (3, 1))
        assert [sorted(connections) for connections in heard] == [[0], [1, 2], [0]]
        for connection in (heard[0][0], heard[2][0]):
            assert connection.getpeername()[1] == int(address.rpartition(":")[2])
        for connections in heard:
            for connection in connections.values():
                connection.close()
    with socket.create_server(("", int(address.rpartition(":")[2]))):
        pass


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        ([(2, 0), (3, 1)], "Process 1 was started with --num_processes=3, and process 0 with"),
        ([(3, 0), (3, 1), (3, 1)], "Two processes were started with --process_id=1"),
    ],
)
def test_all_hear_of_a_disagreement(processes, message):
    heard = call(free_address(), *processes)
    assert len(set(heard)) == 1
    assert heard[0].startswith(message)


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        ([(3, 0), (3, 1)], "Of 3 processes, 1 did not come within 0.5 s (process_id 2): start"),
        ([(2, 1)], "Process 0 was not found at --coordinator="),
        ([(2, 2)], "--process_id=2 is not one of 2 processes: choose 0 to 1"),
        ([(2, -1)], "--process_id=-1 is not one of 2 processes: choose 0 to 1"),
    ],
)
def test_who_is_absent(processes, message):
    heard = call(free_address(), *processes, timeout=0.5)
    assert len(set(heard)) == 1
    assert heard[0].startswith(message)


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":9", "localhost:99999", "a:b"])
def test_an_address_has_a_host_and_a_port(address):
    (heard,) = call(address, (2, 1))
    assert heard == f"--coordinator={address} is no address: give HOST:PORT of process 0, or auto."


@pytest.mark.parametrize("said", [b"\x00\x00\x12\x04\x00\n", b"{}\n"])
def test_a_port_that_is_in_use_and_a_stranger_at_it(said):
    with socket.create_server(("", 0)) as other:
        address = f"localhost:{other.getsockname()[1]}"

        def answer():
            caller, _ = other.accept()
            with caller:
                caller.sendall(said)

        threading.Thread(target=answer, daemon=True).start()
        (heard,) = call(address, (2, 1))
        assert heard.startswith(f"What listens at --coordinator={address} is not process 0")
        (heard,) = call(address, (2, 0))
        assert "(Address already in use): choose a free port." in heard


def test_strangers_who_call_are_not_processes():
    address = free_address()
    port = int(address.rpartition(":")[2])

    def disturb(message):
        for _ in range(100):
            with contextlib.suppress(OSError):
                with socket.create_connection(("localhost", port), timeout=1) as caller:
                    caller.sendall(message)
                return
            time.sleep(0.02)

    strangers = [
        threading.Thread(target=disturb, args=(message,))
        for message in (b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b"[1]\n", b"")
    ]
    for stranger in strangers:
        stranger.start()

    def come_late():
        for stranger in strangers:
            stranger.join()
        return call(address, (2, 1))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        late = pool.submit(come_late)
        (heard,) = call(address, (2, 0), timeout=20.0)
        (answer,) = late.result()
    assert (sorted(heard), sorted(answer)) == ([1], [0])
    heard[1].close()
    answer[0].close()
