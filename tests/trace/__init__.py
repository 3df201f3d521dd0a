"""A trace against what really happened to a packet."""
