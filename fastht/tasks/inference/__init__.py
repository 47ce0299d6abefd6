"""Finished runs in use: exported to one file, and shown images of one's own."""
