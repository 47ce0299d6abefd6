"""What runs leave to be read: tables, comparisons, reports and pictures."""
