"""Everything at once, by a seed: faults of all kinds under traffic and requests, and what must hold all the same."""
