"""Scores of predictions: retrieval, segmentation, classification."""
