"""A model on disk: its sources, its checkpoint read without PyTorch, its tokenizer, and the converted artifact."""
