"""What of this process goes to the server: the queue in memory, and how threads and tasks wait."""
