"""Locks on the caller's own connections and sessions: `create_sadlock` and `create_async_sadlock`."""
