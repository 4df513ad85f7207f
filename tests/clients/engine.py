"""An engine that answers with vLLM's replies (`replies.py`) instead of a model's: ``python -m tests.clients.engine``.

Prints its port, and serves until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from tests.clients import replies

GAP_S = 0.01
"""Between the chunks of a stream."""
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def whole(status: int, body: bytes) -> bytes:
    """An answer in one piece."""
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def refusal(path: str, request: dict[str, Any]) -> bytes | None:
    """What vLLM refuses of what the clients send."""
    model = request.get("model")
    if model not in (None, replies.MODEL):
        return whole(404, replies.dump(replies.no_such_model(str(model))))
    if path == "/v1/chat/completions" and not isinstance(request.get("messages"), list):
        wrong = "1 validation error:\n  {'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required'}"
        return whole(400, replies.dump(replies.error(400, wrong, "Bad Request", "messages")))
    if path not in ("/v1/chat/completions", "/v1/completions"):
        return whole(404, replies.dump(replies.error(404, "Not Found", "Not Found")))
    return None


def chunk(data: bytes) -> bytes:
    """A piece of a body of unknown length."""
    return b"%x\r\n%s\r\n" % (len(data), data)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serves one connection."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = next((int(row[15:]) for row in head.splitlines() if row.startswith(b"content-length:")), 0)
            await _one(head.split(b" ")[1].decode(), await reader.readexactly(length), writer)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _one(path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
    if not body:
        writer.write(whole(200, replies.dump(replies.models()) if path == "/v1/models" else b""))
        return
    request = json.loads(body)
    refused = refusal(path, request)
    if refused is not None:
        writer.write(refused)
    elif request.get("stream"):
        made = replies.chat_stream if "chat" in path else replies.completion_stream
        await _stream(made(request), writer)
    else:
        made_whole = replies.chat if "chat" in path else replies.completion
        writer.write(whole(200, replies.dump(made_whole(request))))


async def _stream(chunks: list[dict[str, Any]], writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM)
    for one in chunks:
        writer.write(chunk(b"data: " + replies.dump(one) + b"\n\n"))
        await writer.drain()
        await asyncio.sleep(GAP_S)
    writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def serve() -> None:
    """Serves until standard input is closed."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.buffer.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve())
