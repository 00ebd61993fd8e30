"""meshvpn: a mesh VPN that joins Asterisk PBXs by a network name and a password."""

__version__ = "0.1.0"
