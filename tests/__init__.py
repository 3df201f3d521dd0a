"""Tests: `unit` is pure, `kernel` sends real packets; lab.py is the one place that builds namespaces."""
