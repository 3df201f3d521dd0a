"""Container runtimes as Debian ships them, with nfportd behind their published ports."""
