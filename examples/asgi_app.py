"""What it takes to serve a model from threads with asyncio: an ASGI application, `uvicorn asgi_app:app`.

POST /predict takes `{"rows": [[...], ...]}` and returns the like; GET /stats tells how it goes.
"""

import json
from typing import Any

import torch

import torchgil

FEATURES = 16
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(FEATURES, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)).eval()
batcher: torchgil.Batcher


async def respond(method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """Status and JSON; the requests of all clients are computed in batches, on a worker."""
    if (method, path) == ("GET", "/stats"):
        return 200, {"rows_per_s": batcher.stats().rows_per_s, "done": batcher.stats().done}
    if (method, path) != ("POST", "/predict"):
        return 404, {"error": "POST /predict or GET /stats"}
    try:
        x = torch.tensor(json.loads(body)["rows"], dtype=torch.float32)
        if x.dim() != 2 or x.shape[1] != FEATURES or not x.isfinite().all():
            raise ValueError(f"rows must be lists of {FEATURES} finite numbers")
    except (ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
        return 400, {"error": str(error)}
    try:
        return 200, {"rows": (await batcher(x)).tolist()}
    except (torchgil.QueueFull, torchgil.BatcherClosed) as error:
        return 503, {"error": str(error)}
    except TimeoutError as error:
        return 504, {"error": str(error)}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI entry. Threads start with the server, not at import: they do not survive a fork."""
    global batcher
    if scope["type"] == "lifespan":
        await receive()
        with torchgil.ThreadPool(inference_mode=True) as pool:
            workers = pool.stats().workers
            options = {"executor": pool, "concurrency": workers, "timeout": 10.0, "on_full": "raise"}
            async with torchgil.Batcher(model, **options) as batcher:
                await send({"type": "lifespan.startup.complete"})
                await receive()  # until the server ends: every request is answered first
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "http":
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        status, data = await respond(scope["method"], scope["path"], body)
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(data).encode()})
