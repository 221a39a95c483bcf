"""A receiver of callbacks that is as bad as receivers can be: `python -m tests.faults.unsteady_receiver PORT FILE`.

Of what it is sent it takes most, refuses some with 500 or 503, breaks some connections off, before or after it has
taken the message, and leaves some without an answer. What it takes it has written to the file before it says so: it can
be killed at any moment. It is well from when there is a file of this name with `.well` behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
import sys
from pathlib import Path

import orjson

_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
_NO_ANSWER_S = 5.0


class Receiver:
    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.well = Path(f"{path}.well")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            request, *lines = head.splitlines()
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
            body = await reader.readexactly(int(headers["content-length"]))
            await self.answer(request.split()[1], headers, body, writer)
        writer.close()

    async def answer(self, path: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        chance = 1.0 if self.well.exists() else random.random()
        if chance < 0.08:
            writer.write(b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops")
        elif chance < 0.09:
            writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nretry-after: 1\r\n\r\n")
        elif chance < 0.13:
            reset(writer)
        elif chance < 0.15:
            await asyncio.sleep(_NO_ANSWER_S)
        else:
            told = {"host": headers["host"], "path": path, "headers": {name: headers[name] for name in _HEADERS}}
            os.write(self.file, orjson.dumps({**told, "body": body.decode()}) + b"\n")
            if chance < 0.18:
                reset(writer)
            else:
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")


def reset(writer: asyncio.StreamWriter) -> None:
    """The other side sees its connection reset."""
    plain = writer.get_extra_info("socket")
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def main(port: int, path: str) -> None:
    receiver = Receiver(path)
    server = await asyncio.start_server(receiver.serve, "0.0.0.0", port, backlog=512)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
