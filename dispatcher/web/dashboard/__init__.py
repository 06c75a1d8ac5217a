"""The dashboard: one page, its assets, and what the page asks for.

GET  /dashboard                     the page; everything that it loads is served from here
GET  /dashboard/api/state           the group, as `dispatcher status` shows it, and a sample of its counters
GET  /dashboard/api/history         the samples of the last six hours
GET  /dashboard/api/letters         dead letters, a page of them
GET  /dashboard/api/letter          one in full
POST /dashboard/api/unlock          whether a token is right
POST /dashboard/api/letters/retry   has the dispatchers deliver letters again
POST /dashboard/api/letters/drop    forgets letters
POST /dashboard/api/pause, resume   a receiver, or everything

Who may what:

- Figures are for everybody who reaches the port, like those of `/status.json`.
- Letters hold documents. On a loopback address whoever is on the machine may read them; elsewhere that takes the
  token.
- What changes something takes the token, everywhere; where none is set, nothing can be changed. It comes in a
  header, which no other site can make a browser send.

    page.py       the page and its assets
    api.py        what the page asks for
    view.py       a group as one document
    letters.py    dead letters as text
    history.py    samples of the last six hours, of which the page makes rates and percentiles
"""
