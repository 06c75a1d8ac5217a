"""What a process answers over HTTP: probes, metrics, its status, and the dashboard where that is installed.

server.py    listens, and serves while the dispatcher runs
connections.py  deadlines for clients, and which one goes when there are too many
app.py       the routes
guard.py     headers, foreign hosts, the token
"""
