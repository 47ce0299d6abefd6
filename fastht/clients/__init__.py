"""Other libraries' training programs, run with patched models."""
