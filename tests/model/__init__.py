"""Random sequences of writes, and a model of the expected deliveries.

    steps.py     the actions of clients: hypothesis draws sequences of them
    model.py     the expected deliveries by the contract; imports no code of mongoz or the dispatcher
    world.py     the clients, the dispatcher, and the calls of receivers
    verdict.py   the differences between the model and the observed calls
    runs.py      one sequence, from its first write to the verdict

    topic.py     relays, a broker and readers of a topic, simulated with faults; it needs no server
    relay.py     the real relay, with a simulated stream, brokers and state, and faults; it needs no server
    claims.py    processes that write with claims, and dispatchers, simulated with faults; it needs no server

The model follows only the contract. If it disagrees with the code, the code or the contract is wrong.
"""
