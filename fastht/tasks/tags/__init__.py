"""Tags of data sets: the check of what images are tagged with, and of the captions beside."""
