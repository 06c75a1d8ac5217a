"""From a change to its receivers: routes, order, attempts, failures."""
