"""Ways through the network: to the closest of a key, to what lies there, to store there."""
