"""A program that misbehaves on a control socket, as somebody: attacker.py SOCKET UID ATTACK

It prints what it did as JSON. All that it needs is imported before it becomes somebody else, who
may not be allowed to read it. That it is thrown out is no failure of an attack.
"""

import encodings.idna  # noqa: F401
import json
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

CONTROL = "org.nginxsupervisor.Control"
PATIENCE = 60.0
BROKEN = (BrokenPipeError, ConnectionResetError)


def call(method: str, *, more: bool = False, **parameters: object) -> bytes:
    message = {"method": f"{CONTROL}.{method}", "parameters": parameters, "more": more}
    return json.dumps(message).encode() + b"\0"


STATUS = call("Status")
FOLLOW = call("Events", more=True, follow=True)


def connected(path: str) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(path)  # blocking: it waits where the queue is full
    stream.settimeout(PATIENCE)
    return stream


@contextmanager
def client(path: str) -> Iterator[socket.socket]:
    """A connection for as long as the other end wants it."""
    with connected(path) as stream, suppress(*BROKEN):
        yield stream


def read_to_end(stream: socket.socket) -> bytes:
    """What is still to come; a reset ends it, too: we had sent what nobody read."""
    received = bytearray()
    with suppress(*BROKEN):
        while data := stream.recv(1 << 16):
            received += data
    return bytes(received)


def churn(path: str) -> dict[str, int]:
    """Ten thousand connections, closed at once; some with a call that nobody waits for."""
    for number in range(10_000):
        with client(path) as stream:
            if number % 4 == 0:
                stream.sendall(STATUS)
    return {"connections": 10_000}


def endless(path: str) -> dict[str, int]:
    """A hundred megabytes without the byte that ends a message."""
    sent = connections = told = 0
    part = b"x" * (1 << 16)
    while sent < 100_000_000:
        connections += 1
        with connected(path) as stream:
            with suppress(*BROKEN):
                while sent < 100_000_000:
                    sent += stream.send(part)
            told += b"BadMessage" in read_to_end(stream)
    return {"bytes": sent, "connections": connections, "told": told}


def half_open(path: str) -> dict[str, int]:
    """Half a message on each of many connections, kept open until the other end gives up."""
    streams = [connected(path) for _ in range(120)]
    for stream in streams:
        with suppress(*BROKEN):
            stream.sendall(STATUS[:-10])
    told = 0
    for stream in streams:
        told += b"BadMessage" in read_to_end(stream)
        stream.close()
    return {"connections": len(streams), "told": told}


def deaf(path: str) -> dict[str, int]:
    """Clients that ask and ask and never read, until they are dropped."""
    streams = [connected(path) for _ in range(60)]
    sent = 0
    for stream in streams:
        stream.setblocking(False)
    asking = set(streams)
    while asking:
        for stream in list(asking):
            try:
                sent += stream.send(STATUS * 200)
            except BlockingIOError:
                continue
            except BROKEN:
                asking.discard(stream)
        time.sleep(0.05)
    for stream in streams:
        stream.close()
    return {"connections": len(streams), "bytes": sent}


def nested(path: str) -> dict[str, int]:
    """JSON that is deep, or that takes more memory than one thinks."""
    upgrade = b'{"method":"%s.Upgrade","parameters":{"binary":' % CONTROL.encode()
    bombs = [
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"method":"x","parameters":' + b'{"a":' * 9_000 + b"1" + b"}" * 9_001,
        upgrade + b"[" * 30_000 + b"]" * 30_000 + b"}}",
        upgrade + b"[" * 900 + b"]" * 900 + b"}}",
        b'{"method":"x","parameters":{"a":[' + b",".join([b"[]"] * 20_000) + b"]}}",
        b'{"method":"x","parameters":{"a":' + b"9" * 60_000 + b"}}",
        b'{"method":"x","parameters":{' + b",".join(b'"%d":0' % n for n in range(6000)) + b"}}",
    ]
    answered = 0
    for bomb in bombs * 30:
        with client(path) as stream:
            stream.sendall(bomb + b"\0")
            answered += b'"error"' in stream.recv(4096)
    return {"messages": 30 * len(bombs), "answered": answered}


def subscribers(path: str) -> dict[str, int]:
    """Many that follow, and that do read."""
    streams = []
    for _ in range(150):
        streams.append(connected(path))
        with suppress(*BROKEN):
            streams[-1].sendall(FOLLOW)
    for stream in streams:
        stream.setblocking(False)
    end = time.monotonic() + 1.0
    received = 0
    while time.monotonic() < end:
        for stream in streams:
            with suppress(BlockingIOError, *BROKEN):
                received += len(stream.recv(1 << 16))
        time.sleep(0.02)
    for stream in streams:
        stream.close()
    return {"connections": len(streams), "bytes": received}


def forbidden(path: str) -> dict[str, int]:
    """Calls that this user may not make, many at a time."""
    denied = 0
    chance = random.Random(1)
    for _ in range(100):
        method = chance.choice(["Upgrade", "Stop", "Restart", "Reload", "Rollback"])
        with client(path) as stream:
            stream.sendall(call(method, more=chance.random() < 0.5) * 16)
            received = b""
            while received.count(b"\0") < 16:
                data = stream.recv(1 << 16)
                if not data:
                    break
                received += data
            denied += received.count(b"NotPermitted")
    return {"denied": denied}


ATTACKS: dict[str, Callable[[str], dict[str, int]]] = {
    one.__name__: one for one in (churn, endless, half_open, deaf, nested, subscribers, forbidden)
}


if __name__ == "__main__":
    socket_path, uid, attack = sys.argv[1:]
    if int(uid) != os.geteuid():
        os.setgroups([])
        os.setgid(int(uid))
        os.setuid(int(uid))
    print(json.dumps(ATTACKS[attack](socket_path)))
