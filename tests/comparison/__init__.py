"""What docs/comparison.md says of us and of our neighbours, each claim by a run of the library that it speaks of."""
