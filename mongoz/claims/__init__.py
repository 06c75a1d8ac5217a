"""Claims: the deliveries that this process runs itself, recorded so that a dispatcher can take them over."""
