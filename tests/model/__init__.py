"""Random sequences of writes, and a model that says which receiver must see which write, how often, and how.

    steps.py     what clients do: hypothesis draws sequences of it
    model.py     what follows from it, by the delivery contract; knows no code of mongoz or the dispatcher
    world.py     the clients, the dispatcher, and what receivers were told
    judging.py   where the two differ
    runs.py      one sequence from its first write to the verdict, and the figures of many

The model follows the contract and nothing else. Where it disagrees with the code, the code is wrong, or the
contract.
"""
