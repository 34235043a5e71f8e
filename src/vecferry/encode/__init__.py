"""Texts become embeddings: batches, memory, cache, runtimes, and the encoder that is made of them."""
