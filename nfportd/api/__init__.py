"""The JSON API on a unix socket. Knows nothing of nft; asks the reconciler."""
