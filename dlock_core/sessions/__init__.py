"""The connection on which locks live: opened, watched, lent and ended."""
