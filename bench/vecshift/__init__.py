"""VecShift beside vecferry: `__main__.py` says what is done and how it is called.

tools.py         the two as an operator drives them
application.py   the application beside them, and what its table must hold
embeddings.py    the embeddings server that both ask
"""
