"""What all other packages use: events, errors in words, clients, the state database, output."""
