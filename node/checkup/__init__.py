"""What `doctor` looks at: the machine, this home, the network; each check is a function of its own."""
