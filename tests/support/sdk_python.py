"""What both clients of Cloudflare's Python SDK, blocking or not, need to be read alike."""

import inspect
from typing import Any


async def done(result: Any) -> Any:
    """What a call gives: the synchronous client gives it at once, the other one when it is awaited."""
    return await result if inspect.isawaitable(result) else result


async def everything(pages: Any) -> list[Any]:
    """All items of a list, by the SDK's own way from page to page."""
    return [item async for item in pages] if hasattr(pages, "__aiter__") else list(pages)
