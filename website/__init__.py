"""What makes the documentation's pages of the repository, without importing fastht."""
