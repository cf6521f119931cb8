"""2-D object detection."""
