"""The page of `nfportctl report`."""
