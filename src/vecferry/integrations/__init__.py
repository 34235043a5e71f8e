"""vecferry behind the interfaces of other frameworks. Each module needs only the package that it is for.

module                   gives                                              needs
-----------------------  -------------------------------------------------  ----------------
connecting               Connection: an encoder by its address              nothing more
langchain                VecferryEmbeddings                                 langchain-core
langchain_qdrant         VecferrySparseEmbeddings, for hybrid search        langchain-qdrant
llama_index              VecferryEmbedding, sparse_functions                llama-index-core
haystack                 Vecferry[Sparse](Text|Document)Embedder            haystack-ai
chroma                   VecferryEmbeddingFunction                          chromadb
sentence_transformers    SentenceTransformer, as that library's             nothing more
flag_embedding           BGEM3FlagModel, as FlagEmbedding's                 nothing more

`foreign` has what the last two share. An adapter takes an encoder, or a `Connection` by which it is opened on first
use, and has no model logic: its vectors are the encoder's, queries in the role of queries. Foreign packages' own
asynchronous forms run the encoder in a thread.
"""
