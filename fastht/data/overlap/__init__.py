"""What data sets share: hashes, candidates, comparison, and what runs remember of it."""
