"""A migration in a browser: where it is, and the verbs as forms. Needs the `console` extra.

    app.py        routes: pages, forms, and the stream of what has changed
    guard.py      before a request is read: whose it is, by Host and origin; the headers of every answer
    sessions.py   logins: keys, cookies, their ends, and how often a wrong key may be tried
    operator.py   who acts: the run in a thread, one verb by hand at a time in another
    actions.py    what each form does
    view.py       a status in words and figures; pure
    comparing.py  one query, asked on both sides
    highlighting.py  which characters of a passage matched, by the heads of the model
    pages.py      values to HTML; the templates are in templates/, style and script in static/

Forms are ordinary ones, answered by a redirect. The script only puts in the place of a part of the page what the
server says that it is now; without it the page is right when it is loaded.
"""
