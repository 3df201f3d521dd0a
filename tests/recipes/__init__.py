"""Runtimes without CNI, examples and the migration from portmap, run as the documentation writes them."""
