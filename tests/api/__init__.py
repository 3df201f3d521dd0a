"""The API of a real daemon in the laboratory, as callers and their clients on the wire see it."""
