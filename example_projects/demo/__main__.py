"""Run it with `python -m example_projects.demo`."""

from __future__ import annotations

from .command import demo

demo(prog_name="demo")
