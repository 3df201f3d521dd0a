"""Beside the rules of other programs: what stops connections, who is named, and what opens them."""
