"""The seam that applications import. It forwards to vecferry, nothing else; copy it into your own tree."""

from vecferry.dropin import active, encode_text, encode_texts, get_embedding_dimension

__all__ = ["active", "encode_text", "encode_texts", "get_embedding_dimension"]
