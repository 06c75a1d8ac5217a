"""Long runs that inject faults, and count losses.

kills.py       one daemon, killed repeatedly while two kinds of clients write
odm_client.py  the process of the application that writes through the ODM
figures.py     the counted figures and their limits; pure
"""
