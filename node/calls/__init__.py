"""Calls to models over `/modelnet/call/1.0.0`: who answers, who asks, and whom to ask."""
