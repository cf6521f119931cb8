"""A run: the trainings that it is made of, and the record that they leave."""
