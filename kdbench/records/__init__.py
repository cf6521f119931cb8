"""What a run leaves behind, and what it was made with."""
