"""What happened under a tag, written for TensorBoard, Weights & Biases, MLflow and Trackio."""
