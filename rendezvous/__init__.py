"""The rendezvous server: who is in which network, addresses, introductions, STUN, relay of last resort."""
