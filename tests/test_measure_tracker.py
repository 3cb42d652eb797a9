from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tvmx.errors import TrackerError, UnknownKeyError
from tvmx.measure import DeviceAddress, RpcRunner, require_key, tracker_summary
from tvmx.measure._tracker import TrackerConnection

MAGIC = struct.pack("<i", 0x2F271)
STATUS = {
    "queue_info": {"rpi4": {"free": 1, "pending": 2}, "ghost": {"free": 0, "pending": 1}},
    "server_info": [
        {"key": "server:rpi4", "addr": ["10.0.0.2", 9090]},
        {"key": "server:rpi4", "addr": ["10.0.0.3", 9091]},
        {"key": "server:host", "addr": [None, 9092]},
    ],
}


@contextmanager
def listener(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that treats its one client as ``answer`` says; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def message(value: object) -> bytes:
    body = json.dumps(value).encode()
    return struct.pack("<i", len(body)) + body


def until_closed(connection: socket.socket) -> None:
    with suppress(ConnectionResetError):
        while connection.recv(4096):
            continue


def test_summary() -> None:
    def answer(connection: socket.socket) -> None:
        assert connection.recv(4) == MAGIC
        connection.sendall(MAGIC)
        assert connection.recv(4096) == message([6])
        for byte in message([0, STATUS]):  # arrives in pieces
            connection.sendall(bytes([byte]))
        until_closed(connection)

    with listener(answer) as port:
        summary = tracker_summary("127.0.0.1", port)
    assert sorted(summary.keys) == ["host", "rpi4"]  # nobody serves "ghost"
    status = summary.keys["rpi4"]
    assert (status.servers, status.free, status.busy, status.pending) == (2, 1, 1, 2)
    assert summary.registered("rpi4", 9091) and not summary.registered("host", 9091)


def test_unknown_key_lists_the_known_ones() -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(4)
        connection.sendall(MAGIC)
        connection.recv(4096)
        connection.sendall(message([0, STATUS]))
        until_closed(connection)

    with listener(answer) as port, pytest.raises(UnknownKeyError) as caught:
        require_key(DeviceAddress("127.0.0.1", port, "ghost"))
    assert "'ghost'" in caught.value.message and "host, rpi4" in caught.value.message
    assert "tvmx serve --key ghost" in str(caught.value.hint)


def test_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(TrackerError, match="refused") as caught:
        RpcRunner(DeviceAddress("127.0.0.1", port, "k"))
    assert time.monotonic() - start < 5
    assert "tvmx tracker" in str(caught.value.hint)


def test_unknown_host() -> None:
    with pytest.raises(TrackerError, match=r"no\.such\.host\.invalid"):
        tracker_summary("no.such.host.invalid", 9190)


@pytest.mark.parametrize(
    "greeting",
    [b"HTTP/1.1 400 Bad Request\r\n", b"", MAGIC + b"\xff\xff\xff\x7f", MAGIC + b"\5\0\0\0{not}"],
)
def test_not_a_tracker(greeting: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(4)
        connection.sendall(greeting)
        if not greeting:
            return
        until_closed(connection)

    with listener(answer) as port, pytest.raises(TrackerError, match="not a"):
        tracker_summary("127.0.0.1", port)


@pytest.mark.parametrize(
    "reply", [[1, STATUS], [0], {}, [0, {}], [0, {"server_info": [1], "queue_info": {}}], 7]
)
def test_answers_that_make_no_sense(reply: object) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(4)
        connection.sendall(MAGIC)
        connection.recv(4096)
        connection.sendall(message(reply))
        until_closed(connection)

    with listener(answer) as port, pytest.raises(TrackerError, match="not a TVM RPC tracker"):
        tracker_summary("127.0.0.1", port)


@pytest.mark.parametrize("greeting", [b"", MAGIC])
def test_silence_ends_at_the_deadline(greeting: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(greeting)
        until_closed(connection)

    start = time.monotonic()
    with listener(answer) as port, pytest.raises(TrackerError, match="answer"):
        tracker_summary("127.0.0.1", port, timeout=0.4)
    assert time.monotonic() - start < 1.5


def test_request_gives_up_at_the_deadline() -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(4)
        connection.sendall(MAGIC)
        until_closed(connection)

    start = time.monotonic()
    with listener(answer) as port, TrackerConnection("127.0.0.1", port) as tracker:
        assert tracker.request("k", 0.3) is None
    assert 0.25 < time.monotonic() - start < 1.5
