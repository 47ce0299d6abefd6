"""The data sets of the field: what they hold, where they are published, how to read them."""
