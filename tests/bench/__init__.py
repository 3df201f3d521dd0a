"""The benches: that they run, and that what they load is what others load."""
