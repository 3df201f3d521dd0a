"""What happens to a connection: explained from the live state, and watched on a real packet."""
