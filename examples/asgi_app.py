"""A model behind ASGI, served from threads: `uvicorn asgi_app:app`.

No framework: an ASGI application is a coroutine function, and a framework would route to the same lines.
POST /predict takes `{"rows": [[...], ...]}` and returns the like; requests of many clients are batched.
GET /stats tells how it goes.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import torch

import torchgil

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

FEATURES = 16


class Application:
    """Starts pool and batcher with the server, and ends with every request answered."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] == "lifespan":
            await self.live(receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close"})  # refused before it is accepted
        elif (scope["method"], scope["path"]) == ("POST", "/predict"):
            await self.predict(receive, send)
        elif (scope["method"], scope["path"]) == ("GET", "/stats"):
            stats = self.batcher.stats()
            await answer(send, 200, {"rows_per_s": stats.rows_per_s, "done": stats.done})
        else:
            await answer(send, 404, {"error": "POST /predict or GET /stats"})

    async def live(self, receive: Receive, send: Send) -> None:
        """From the server's start to its end. In here, not at import: threads do not survive a fork."""
        await receive()
        self.pool = torchgil.ThreadPool(inference_mode=True)
        workers = self.pool.stats().workers
        self.batcher = torchgil.Batcher(
            self.model, executor=self.pool, concurrency=workers, timeout=10.0, on_full="raise"
        )
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.batcher.aclose()
        self.pool.shutdown()
        await send({"type": "lifespan.shutdown.complete"})

    async def predict(self, receive: Receive, send: Send) -> None:
        """One request: parse on the loop, compute in a batch on a worker."""
        try:
            x = torch.tensor(json.loads(await body(receive))["rows"], dtype=torch.float32)
            if x.dim() != 2 or x.shape[1] != FEATURES or not x.isfinite().all():
                raise ValueError(f"rows must be lists of {FEATURES} finite numbers")
        except (ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
            await answer(send, 400, {"error": str(error)})
            return
        try:
            y = await self.batcher(x)
        except (torchgil.QueueFull, torchgil.BatcherClosed) as error:
            await answer(send, 503, {"error": str(error)})
        except TimeoutError as error:
            await answer(send, 504, {"error": str(error)})
        else:
            await answer(send, 200, {"rows": y.tolist()})


async def body(receive: Receive) -> bytes:
    """The whole body of a request."""
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def answer(send: Send, status: int, data: dict[str, Any]) -> None:
    """A JSON response."""
    text = json.dumps(data).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


torch.manual_seed(0)
app = Application(
    torch.nn.Sequential(torch.nn.Linear(FEATURES, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)).eval()
)
