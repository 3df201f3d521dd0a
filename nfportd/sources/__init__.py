"""What asks for mappings: the directory of drop-ins. Knows nothing of nftables."""
