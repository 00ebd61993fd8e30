"""Measurements, one file a question; and the demonstration.

    python -m bench             all of them: a Markdown page and a plot          __main__.py
    python -m bench.voice       CPU, loss, delay, jitter of small packets        voice.py
    python -m bench.capacity    the largest number of calls                      capacity.py
    python -m bench.bulk        TCP                                              bulk.py
    python -m bench.peers       many peers in the engine's table                 peers.py, engine_host.py
    python -m bench.relay       the rendezvous as a relay                        relay.py
    python -m bench.handshakes  a thousand at once                               handshakes.py
    python -m bench.crowd       a hundred connected peers: memory, idle CPU      crowd.py
    python -m bench.start       start, join, first packet, direct path, memory   start.py, probe.py
    python -m bench.demo        what the product does, in two minutes            demo.py, calls.py

All run as root, in network namespaces that they make and remove. Who is measured and how it is configured is in
contestants.py; the load comes from voice.c, and floors.c has the bare copies that stand for the limit of the kernel.
"""
