"""Long runs that break things, and count what was lost.

kills.py    one daemon, killed again and again while two kinds of clients write
own.py      the process of the application that writes through the ODM
figures.py  what is counted, and what it must be; pure
"""
