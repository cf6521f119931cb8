"""Text: language models, on words whose law is known."""
