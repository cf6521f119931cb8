"""Runs shown elsewhere while they train: Weights & Biases, TensorBoard, MLflow."""
