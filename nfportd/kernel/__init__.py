"""What talks to the kernel: nft, routes, sysctls, conntrack. Knows nothing of YAML or owners."""
