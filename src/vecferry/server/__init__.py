"""HTTP: parse, queue, encode, render; no model logic. Needs the `server` extra.

    connection.py  before there is a request: who gets a connection, and those that do not come on
    guard.py       before a request is read: its id, and its key or hosts.py's names; the line in the log afterwards
    bodies.py      while it is read: size, values and time of one body, and the bytes of all
    openai.py      /v1/embeddings, /v1/models
    tei.py         /embed, /embed_sparse, /embed_all, /similarity, /tokenize, /decode, /info, /health, /metrics
    m3.py          /v1/m3, /search
    requests.py    what the three have in common: which model, which texts, for how long
    answers.py     embeddings and errors to bytes
    service.py     a request's texts to embeddings: limits, tokens, queue, answer
    lanes.py       what waits, and what is taken next; decides, and starts nothing
    workers.py     one thread for each lane, which runs what it takes
    models.py      the models that are served, and whether they work
    process.py     the process, from listening to its end; app.py puts the parts together
    metrics.py, logs.py, tracing.py, keys.py, options.py, openapi_schema.py

Two lanes, a thread each (docs/decisions/0016): short requests never wait behind long ones, since the thread of the
bulk lane gives way to the other wherever both want a processor.
"""
