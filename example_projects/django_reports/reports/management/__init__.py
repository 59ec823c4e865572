"""Where Django looks."""
