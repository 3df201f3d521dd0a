"""A real systemd, and nfportd as its service."""
