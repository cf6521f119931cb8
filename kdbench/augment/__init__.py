"""Augmentations of training batches, one file per paper; ``conf/augment/<name>.yaml`` names the class and options."""
