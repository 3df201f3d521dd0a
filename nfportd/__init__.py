"""Publishes host ports through one nftables table; docs/architecture.md is the map of its modules."""
