"""Faults of parts on which nfportd leans, with the real daemon under traffic."""
