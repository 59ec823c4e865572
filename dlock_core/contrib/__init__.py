"""What connects dlock with other tools: metrics, traces, tests."""
