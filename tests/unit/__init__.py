"""Tests of what is pure: no root, no namespace, no daemon; each runs in milliseconds."""
