"""Peers by the thousand in virtual time: scenarios, what they must reach, and what they reached."""
