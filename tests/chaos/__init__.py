"""Long runs that inject faults, and count losses.

Each scenario has a module, which `__main__.py` lists. `kills.py` is the smallest.

world.py       the participants of a run, and their observation
odm_client.py  the process of the application that writes through the ODM
figures.py     the counted figures and their limits; pure
"""
