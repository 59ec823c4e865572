"""The real core under a scheduler, a clock and a server that a seed decides: every interleaving can be replayed."""
