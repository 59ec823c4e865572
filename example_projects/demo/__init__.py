"""`make demo`: processes that compete for one lock, some killed while they hold it.

`events` is what workers and parent say; `worker` runs in the child processes, `crew`
starts and ends them, `race` decides which is killed and when; `judge` looks at nothing
but the events; `timeline`, `live` and `plain` show them.
"""
