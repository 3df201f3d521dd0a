"""Input that nobody wrote: made of valid documents by damage, and judged by what must hold for every input."""
