"""What users' editors see: read by mypy and pyright, never run."""
