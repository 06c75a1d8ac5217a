"""How many attempts of a receiver may run at once, and how many in a period."""
