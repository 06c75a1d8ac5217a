"""Update operators: what they may do to a document, and what the server makes of them."""
