"""Reports that must not be built twice at a time."""
