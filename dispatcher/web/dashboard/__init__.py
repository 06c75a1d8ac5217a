"""The dashboard: a page, its assets, and the requests of the page.

GET  /dashboard                     the page; the dispatcher serves everything that the page loads
GET  /dashboard/api/state           the group, as `dispatcher status` shows it, and a sample of its counters
GET  /dashboard/api/history         the last six hours, in steps of a minute
GET  /dashboard/api/letters         one page of the list of dead letters
GET  /dashboard/api/letters/groups  the number of dead letters by receiver and error
GET  /dashboard/api/letters/retried the progress of a retry of many dead letters
GET  /dashboard/api/letter          one dead letter in full
POST /dashboard/api/unlock          checks a token
POST /dashboard/api/letters/retry   requests retries of dead letters, in steps if they are many
POST /dashboard/api/letters/stop    withdraws requests for retries that have not begun
POST /dashboard/api/letters/drop    drops dead letters, in steps if they are many
POST /dashboard/api/pause, resume   pauses or resumes a receiver, or everything

Access:

- Every client that reaches the port can read the figures, as in `/status.json`.
- Dead letters hold documents, so reading them needs the token. If no token is set, users of this machine can read
  them on a loopback address.
- Actions need the token. If no token is set, no action is possible. The token is sent in a header: no other web
  site can make a browser send it.

    page.py       the page and its assets
    api.py        the requests of the page
    selections.py the content of requests
    view.py       the status of a group as one document
    letters.py    dead letters as text
    history.py    counters of the last six hours; the page computes rates and percentiles from them
"""
