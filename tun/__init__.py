"""The TUN device and the engine that moves packets between it and UDP; knows numbers, keys and addresses only."""
