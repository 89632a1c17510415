"""A long-lived program for tests of units and containers: `asks.py SOCKET ADDRESS`. Nothing but the standard library.

Whoever connects to its unix socket makes it open a connection of its own, to the HTTP server of the lab's internet, and
gets as JSON: its process, and the address that the internet saw, or why there is no connection.
"""

import json
import os
import socket
import sys
from contextlib import suppress

path, internet = sys.argv[1:]
with suppress(FileNotFoundError):
    os.unlink(path)  # noqa: PTH108
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
while True:
    asking, _ = server.accept()
    try:
        with socket.create_connection((internet, 80), 5) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            seen = json.loads(connection.makefile().read().partition("\n\n")[2])["address"]
    except OSError as error:
        seen = error.strerror
    with asking:
        asking.sendall(json.dumps([os.getpid(), seen]).encode())
