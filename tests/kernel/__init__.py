"""Real packets through the real daemon: what a client on the wire sees."""
