"""Code that all other packages use: events, error texts, clients, the state database, output."""
