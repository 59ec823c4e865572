"""A FastAPI endpoint that starts one expensive export at a time, and answers 409 to all others."""

from __future__ import annotations

import asyncio
import os

from fastapi import FastAPI, HTTPException

from dlock_core import AsyncLockProvider, LockTimeoutError

app = FastAPI()
locks = AsyncLockProvider(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///app.db"), prefix="export")


@app.post("/resources/{resource_id}/export")
async def export(resource_id: str) -> dict[str, str]:
    """Export a resource, unless another request does already."""
    try:
        async with locks.lock(resource_id, timeout=0):
            await asyncio.sleep(1)  # the work
            return {"exported": resource_id}
    except LockTimeoutError:
        raise HTTPException(409, "this export is running already", {"Retry-After": "1"}) from None
