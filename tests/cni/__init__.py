"""The CNI plugin against a real daemon and a real kernel."""
