"""A method, an augmentation and a quantisation, one file each."""
