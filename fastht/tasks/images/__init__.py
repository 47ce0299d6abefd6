"""Tasks on images with masks or labels: segmentation, classification, few-shot."""
