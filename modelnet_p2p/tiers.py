"""The kinds of machine that this version knows of; a record may say another.

Alone here, so that a command can name them and load no records.
"""

TIERS = ("device", "edge", "cloud")
