"""How fast locks are: ours beside the raw driver and beside other libraries, on real servers.

`python -m benchmarks` measures; `benchmarks/plan.py` says what, `benchmarks/measures/` how, and
`benchmarks/contenders/` against what.
"""
