"""Tasks on images with texts: contrastive training, zero-shot, retrieval."""
