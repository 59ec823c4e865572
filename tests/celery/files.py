"""Kombu's broker in a folder, with messages that appear whole: its own reader may find one that is still written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps

__all__ = ["BROKER_URL"]

BROKER_URL = "files://"
TRANSPORT_ALIASES["files"] = f"{__name__}:Transport"


class Channel(filesystem.Channel):
    """Moves each message to its place."""

    def _put(self, queue: str, payload: dict[str, Any], **_: Any) -> None:  # type: ignore[override]
        name = f"{time.monotonic_ns() // 1_000_000}_{uuid4()}.{queue}.msg"
        place = Path(self.data_folder_out)
        part = place.parent / name
        part.write_text(dumps(payload))
        part.rename(place / name)


class Transport(filesystem.Transport):
    """The transport with that channel."""

    Channel = Channel
    driver_type = "files"
