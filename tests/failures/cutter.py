"""Stands before a rendezvous without TLS, and cuts the first connection when the member has sent its first message.

`python -m tests.failures.cutter PORT HOST SERVER_PORT`. The server gets the message; its answer goes nowhere.
"""

from __future__ import annotations

import asyncio
import sys

BINARY_FRAME = 0x82  # RFC 6455 §5.2: the last fragment of a binary message


class Cutter:
    """Forwards connections, the first of them only until its first message."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._has_cut = False

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        server_reader, server_writer = await asyncio.open_connection(*self._server)
        there = asyncio.create_task(self._pump(reader, server_writer, writer))
        back = asyncio.create_task(self._pump(server_reader, writer, None))
        await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        for task in (there, back):
            task.cancel()
        await asyncio.gather(there, back, return_exceptions=True)
        for end in (writer, server_writer):
            end.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, member: asyncio.StreamWriter | None
    ) -> None:
        while data := await reader.read(65536):
            is_last = member is not None and data[0] == BINARY_FRAME and not self._has_cut
            if is_last and member is not None:
                self._has_cut = True
                member.transport.abort()
            writer.write(data)
            await writer.drain()
            if is_last:
                return


async def main(port: int, host: str, server_port: int) -> None:
    server = await asyncio.start_server(Cutter(host, server_port).forward, host, port)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
