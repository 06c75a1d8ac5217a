"""HTTP: probes, metrics, the status and the dashboard.

server.py       listens, and serves while the dispatcher runs
accepting.py    accepts connections
connections.py  deadlines for clients, and a limit of connections
app.py          the routes
guard.py        headers, foreign hosts, the token
links.py        links to a dashboard with its token
dashboard/      the page, and its requests
"""
