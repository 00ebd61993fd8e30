"""The protocol, pure: bytes, numbers and addresses in; bytes, events and deadlines out.

Nothing here reads a clock, draws a random number, opens a socket or a file, logs, or knows asyncio. Whoever
drives a machine passes the time (`now`, monotonic seconds) and the randomness, and carries its output away.

Every machine has the same verbs:

    handle_datagram(data, path, *, now)   one datagram from the network; never raises on what a peer sent
    handle_<what happened>(…, *, now)     what the user, the rendezvous or the engine reports
    handle_timeout(*, now)                do everything that is due
    next_timeout() -> float | None        the earliest deadline
    take_transmits() -> list              datagrams to send, and clears
    take_events() -> list                 what the shell must know or do, and clears

One mutation, then drain: after any `handle_…` the driver takes transmits and events and asks for the next
timeout. A machine that is driven late still behaves. What the network sends is either handled or dropped with a
`DropReason` and a counter.
"""
